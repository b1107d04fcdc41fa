#!/bin/bash
# A guest image by hand: the agent by npm, the packages by mmdebstrap, the disk by mkfs.ext4.
# Runs in an empty directory with, in the environment:
#   PACKAGES (comma-separated)  RELEASE  SOURCES and APT_OPTIONS (lines for apt)  DISK (bytes)
#   AGENT (npm package@version)  NODE (directory of a Node distribution)
#   ASSEMBLE (puts our own files into the tree) and the GUEST_* that it reads
#   AS_ROOT (how to act as the owner of the tree; empty for root)
#   MARKS (file that takes a line for each step reached: its name and the time in unix seconds)
set -euo pipefail
export LC_ALL=C TMPDIR=$PWD

mark() { printf '%s %s\n' "$1" "$EPOCHREALTIME" >>"$MARKS"; }

# The agent is fetched while apt is at work; the last hook waits for it.
(
    if [[ -e /etc/npmrc ]]; then export npm_config_globalconfig=/etc/npmrc; fi
    "$NODE/bin/node" "$NODE/lib/node_modules/npm/bin/npm-cli.js" install --prefix npm --cache npm-cache \
        --ignore-scripts --no-audit --no-fund "$AGENT"
    touch npm/complete
) &
fetching=$!
trap 'kill $fetching 2>/dev/null || :' EXIT
export GUEST_CLAUDE=$PWD/npm/node_modules/${AGENT%@*}/claude

mapfile -t options < <(sed '/^$/d; s/^/--aptopt=/' <<<"$APT_OPTIONS")
mapfile -t sources <<<"$SOURCES"
mmdebstrap --variant=minbase --format=directory --include="$PACKAGES" "${options[@]}" \
    --aptopt='Apt::Install-Recommends false' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="until [ -e npm/complete ]; do kill -0 $fetching && sleep 0.1; done; bash '$ASSEMBLE' \"\$1\"" \
    --customize-hook='cp "$1/boot/kernel" "$1/boot/initrd" . && rm -rf "$1"/boot/*' \
    "$RELEASE" root "${sources[@]}"
mark packages

truncate -s "$DISK" base.raw
# shellcheck disable=SC2086  # a command and its argument, or nothing
$AS_ROOT mkfs.ext4 -q -F -L root -m 0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d root base.raw
mark disk
