#!/bin/bash
# Runs on the build machine with the new root file system as $1: adds what apt does not bring, then sets it up.
# From the environment: GUEST_DIR, GUEST_CLAUDE, GUEST_NODE (empty: none), GUEST_SETUP, GUEST_RELEASE.
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

for script in "$GUEST_DIR/setup.sh" "$GUEST_SETUP"; do
    install -m 0700 "$script" "$root/setup"
    RELEASE=$GUEST_RELEASE chroot "$root" /setup
    rm "$root/setup"
done
