#!/bin/bash
# One task by hand: clone, restore a machine, copy the tree in, run Claude Code over ssh, diff, copy the work out.
# Besides the environment of machine.sh: REPOSITORY BRANCH PROMPT MODEL MODEL_URL, PATTERNS (paths to fetch).
source "${BASH_SOURCE[0]%/*}/machine.sh"

git clone -q --branch "$BRANCH" "$REPOSITORY" tree
base=$(git -C tree rev-parse HEAD)
mark cloned

restore_machine
enter_machine
mark restored
tar -c -C tree . | guest 'mkdir work && tar -x -C work'
mark copied_in

environment="ANTHROPIC_BASE_URL=$MODEL_URL ANTHROPIC_AUTH_TOKEN=by-hand CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"
environment+=" DISABLE_AUTOUPDATER=1 IS_SANDBOX=1"
guest "cd work && $environment claude --print --verbose --output-format=stream-json --model=$MODEL \
    --dangerously-skip-permissions ${PROMPT@Q}" </dev/null |
    { IFS= read -r line && mark first_line && printf '%s\n' "$line" && cat; } >agent.log
mark agent_done

guest "cd work && git add --all && git diff --cached --binary $base >/tmp/changes.patch && \
    tar -c $PATTERNS -C /tmp changes.patch" | tar -x
[[ -s changes.patch && -s REPORT.md ]]
mark copied_out

kill -9 "$qemu"
wait "$qemu" || :
trap - EXIT
rm -rf ./*
mark torn_down
