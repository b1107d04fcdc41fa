#!/bin/bash
# A guest image by hand: the agent by npm, the packages by mmdebstrap, our own files by cp, the disk by mkfs.ext4.
# Runs in an empty directory with, in the environment:
#   PACKAGES (comma-separated)  RELEASE  SOURCES and APT_OPTIONS (lines for apt)  DISK (bytes)
#   AGENT (npm package@version)  NODE (directory of a Node distribution)
#   GUEST_DIR (guest/image)  GUEST_NODE (the Node that the guest gets; empty: none)  GUEST_SETUP (shell commands)
#   AS_ROOT (how to act as the owner of the tree; empty for root)
#   MARKS (file that takes a line for each step reached: its name and the time in unix seconds)
set -euo pipefail
export LC_ALL=C TMPDIR=$PWD

mark() { printf '%s %s\n' "$1" "$EPOCHREALTIME" >>"$MARKS"; }

# The agent is fetched while apt is at work; a hook waits for it.
(
    if [[ -e /etc/npmrc ]]; then export npm_config_globalconfig=/etc/npmrc; fi
    "$NODE/bin/node" "$NODE/lib/node_modules/npm/bin/npm-cli.js" install --prefix npm --cache npm-cache \
        --ignore-scripts --no-audit --no-fund "$AGENT"
    touch npm/complete
) &
fetching=$!
trap 'kill $fetching 2>/dev/null || :' EXIT
export GUEST_CLAUDE=$PWD/npm/node_modules/${AGENT%@*}/claude

# Runs with the new root file system as $1: adds what apt does not bring, then sets it up.
cat >own-files <<'SCRIPT'
set -eu
root=$1
cp -r --no-preserve=ownership "$GUEST_DIR/rootfs/." "$root/"
install -m 0755 "$GUEST_CLAUDE" "$root/usr/local/bin/claude"
if [[ -n $GUEST_NODE ]]; then
    install -m 0755 "$GUEST_NODE/bin/node" "$root/usr/local/bin/node"
    mkdir -p "$root/usr/local/lib/node_modules"
    cp -r --no-preserve=ownership "$GUEST_NODE/lib/node_modules/npm" "$root/usr/local/lib/node_modules/"
    rm -rf "$root/usr/local/lib/node_modules/npm/docs" "$root/usr/local/lib/node_modules/npm/man"
    ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
    ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/local/bin/npx"
fi
{ echo "RELEASE=$RELEASE" && cat "$GUEST_DIR/setup.sh" && printf '%s\n' "$GUEST_SETUP"; } >"$root/setup"
chroot "$root" /bin/bash /setup
rm "$root/setup"
SCRIPT

mapfile -t options < <(sed '/^$/d; s/^/--aptopt=/' <<<"$APT_OPTIONS")
mapfile -t sources <<<"$SOURCES"
mmdebstrap --variant=minbase --format=directory --include="$PACKAGES" "${options[@]}" \
    --aptopt='Apt::Install-Recommends false' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
    --customize-hook="until [ -e npm/complete ]; do kill -0 $fetching && sleep 0.1; done; bash own-files \"\$1\"" \
    --customize-hook='cp "$1/boot/kernel" "$1/boot/initrd" . && rm -rf "$1"/boot/*' \
    "$RELEASE" root "${sources[@]}"
mark packages

truncate -s "$DISK" base.raw
# shellcheck disable=SC2086  # a command and its argument, or nothing
$AS_ROOT mkfs.ext4 -q -O ^resize_inode -F -L root -m 0 -J size=16 \
    -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d root base.raw
mark disk
