#!/bin/bash
# A machine paused, and resumed until the process in it goes on. Besides the environment of machine.sh:
#   COUNTING (starts a process in the guest that counts on the console)
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
enter_machine
guest "$COUNTING"
until grep -q count console.log; do sleep 0.01; done
leave_machine
mark counting
save_machine paused
mark paused
# The machine that was paused here is lost with the host, until this has ended.
sync root.qcow2
mark on_disk

rm console.log
start_machine -loadvm paused
until grep -q -s count console.log; do sleep 0.005; done
mark goes_on
enter_machine
mark first_command
