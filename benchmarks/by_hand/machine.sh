# shellcheck shell=bash
# A machine made by hand from a finished guest image: its own disk, keys and identity, plain QEMU, plain ssh.
# Sourced by the scripts beside it, which run in an empty directory of their own with, in the environment:
#   BASE KERNEL INITRD COMMAND_LINE   the image        ACCEL CPU        what QEMU runs it with
#   CPUS MEMORY DISK                  the shape        PORT             a free port of loopback for the guest's SSH
#   MARKS                             file that takes a line for each step reached: its name and the time in unix seconds
# and, where machines are restored:
#   KEPT                              directory of a machine that keep_machine has left, and restore_machine copies
#   GUEST_USER                        who enters the guest; default: agent
set -euo pipefail
export LC_ALL=C

mark() { printf '%s %s\n' "$1" "$EPOCHREALTIME" >>"$MARKS"; }

# make_machine: two key pairs, the identity as one message, an overlay on the image.
make_machine() {
    ssh-keygen -q -t ecdsa -N '' -C '' -f client &
    ssh-keygen -q -t ecdsa -N '' -C '' -f ssh_host_key
    wait $!
    printf 'guest %s' "$(<ssh_host_key.pub)" >known_hosts
    printf 'hostname=guest\tmachine-id=%s\tauthorized-keys=%s\thost-key=%s\n\tgrow=%s\0' \
        "$(tr -d - </proc/sys/kernel/random/uuid)" "$(<client.pub)" "$(<ssh_host_key)" "$(numfmt --from=iec "$DISK")" \
        >identity
    qemu-img create -q -f qcow2 -F raw -b "$BASE" root.qcow2 "$DISK"
}

# start_machine [QEMU ARGUMENT...]: returns at once.
start_machine() {
    qemu-system-x86_64 -nodefaults -no-user-config -display none \
        -machine q35,vmport=off,i8042=off -accel "$ACCEL" -cpu "$CPU" -smp "$CPUS" -m "$MEMORY" \
        -kernel "$KERNEL" -initrd "$INITRD" -append "$COMMAND_LINE" -serial file:console.log \
        -drive file=root.qcow2,if=virtio,cache=unsafe \
        -nic "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:$PORT-:22" \
        -device virtio-serial-pci -chardev socket,id=identity,path=identity.sock,server=on,wait=off \
        -device virtserialport,chardev=identity,name=org.taskyard.identity \
        -monitor unix:monitor.sock,server=on,wait=off "$@" </dev/null >qemu.log 2>&1 &
    qemu=$!
    trap 'kill -9 $qemu' EXIT
}

# introduce_machine: send the identity, which QEMU holds until the guest reads it; returns when the guest has opened SSH.
introduce_machine() {
    local answer
    until [[ -S identity.sock ]]; do sleep 0.01; done
    coproc PORT_TALK { exec socat - UNIX-CONNECT:identity.sock; }
    cat identity >&"${PORT_TALK[1]}"
    IFS= read -r answer <&"${PORT_TALK[0]}"
    [[ $answer == ready ]]
}

connection=(-i client -o IdentitiesOnly=yes -o UserKnownHostsFile=known_hosts -o HostKeyAlias=guest
    -o KexAlgorithms=curve25519-sha256 -o Ciphers=aes128-ctr -o MACs=hmac-sha2-256-etm@openssh.com
    -o ControlMaster=auto -o ControlPath=mux -o ControlPersist=yes -o LogLevel=ERROR)

# guest COMMAND: over one connection, opened by the first call.
guest() {
    ssh "${connection[@]}" -p "$PORT" "${GUEST_USER:-agent}@127.0.0.1" "$@"
}

# transfer: the commands of sftp that come on stdin, over the same connection.
transfer() {
    sftp -q -b - "${connection[@]}" -P "$PORT" "${GUEST_USER:-agent}@127.0.0.1" >/dev/null
}

# enter_machine: returns at the end of the first command over a new connection; fails when QEMU ends.
enter_machine() {
    until guest true; do
        kill -0 "$qemu"
        sleep 0.01
    done
}

# leave_machine: close the connection.
leave_machine() {
    guest -O exit 2>/dev/null
}

# save_machine NAME: the machine's memory into its own disk, under this name, and QEMU ends.
save_machine() {
    printf 'savevm %s\nquit\n' "$1" | socat -t 600 - UNIX-CONNECT:monitor.sock >monitor.log
    wait "$qemu" || :
    trap - EXIT
    if grep -q Error monitor.log; then cat monitor.log && return 1; fi
}

# keep_machine: save the machine, with what is needed to enter it, for restore_machine.
keep_machine() {
    save_machine entered
    mkdir "$KEPT.draft"
    mv root.qcow2 client known_hosts "$KEPT.draft"
    mv "$KEPT.draft" "$KEPT"
}

# restore_machine: a copy of the machine in $KEPT goes on where that one stood.
restore_machine() {
    cp --preserve=mode --sparse=always --reflink=auto "$KEPT"/* .
    start_machine -loadvm entered
}
