#!/bin/bash
# One task by hand: clone, make the workspace disk, boot, run Claude Code over ssh, fetch the work, diff it.
# Besides the environment of machine.sh: REPOSITORY BRANCH PROMPT MODEL MODEL_URL, PATTERNS (paths to fetch).
source "${BASH_SOURCE[0]%/*}/machine.sh"

git clone -q --branch "$BRANCH" "$REPOSITORY" tree
base=$(git -C tree rev-parse HEAD)
# The agent's user id in the guest; whoever may not give files away here does so there.
own=:
if ((EUID == 0)); then chown -R 1000:1000 tree; else own='sudo chown -R agent: /workspace'; fi
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=1000:1000 -d tree workspace.raw "$DISK"
mark staged

make_machine
start_machine -drive file=workspace.raw,format=raw,if=virtio,cache=unsafe
introduce_machine
mark introduced
guest "sudo mount -o noatime /dev/vdb /workspace && $own"
mark entered

environment="ANTHROPIC_BASE_URL=$MODEL_URL ANTHROPIC_AUTH_TOKEN=by-hand CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"
environment+=" DISABLE_AUTOUPDATER=1 IS_SANDBOX=1"
guest "cd /workspace && $environment claude --print --verbose --output-format=stream-json --model=$MODEL \
    --dangerously-skip-permissions ${PROMPT@Q}" </dev/null |
    { IFS= read -r line && mark first_line && printf '%s\n' "$line" && cat; } >agent.log
mark agent_done

guest "cd /workspace && git add --all && git diff --cached --binary $base >/tmp/changes.patch && \
    tar -c $PATTERNS -C /tmp changes.patch" | tar -x
[[ -s changes.patch && -s REPORT.md ]]
mark collected

kill -9 "$qemu"
wait "$qemu" || :
trap - EXIT
rm -rf ./*
mark done
