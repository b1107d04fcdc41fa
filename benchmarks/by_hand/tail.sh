#!/bin/bash
# Lines that a program writes into a file of the guest, read over ssh as they come. Besides the environment of
# machine.sh: PROGRAM (for bash)  COUNT (of its lines)
#   LINES_READ   file that takes each line, with the unix time at which it came before it
#   CLOCK        file that takes looks at the guest's clock, before and after: unix times of here, there, and here again
source "${BASH_SOURCE[0]%/*}/machine.sh"

look_at_clock() {
    local before there
    for _ in {1..20}; do
        before=$EPOCHREALTIME
        echo >&"${TALK[1]}"
        read -r there <&"${TALK[0]}"
        printf '%s %s %s\n' "$before" "$there" "$EPOCHREALTIME" >>"$CLOCK"
    done
}

restore_machine
enter_machine
coproc TALK { guest "bash -c 'while read -r; do echo \$EPOCHREALTIME; done'"; }
look_at_clock
mark entered

guest ": >lines; bash -c ${PROGRAM@Q} >>lines 2>&1 </dev/null &"
exec {lines}< <(guest 'exec tail -n +1 -f lines')
for ((count = 0; count < COUNT; count++)); do
    IFS= read -r line <&"$lines"
    printf '%s %s\n' "$EPOCHREALTIME" "$line" >>"$LINES_READ"
done
mark read
look_at_clock
mark over
