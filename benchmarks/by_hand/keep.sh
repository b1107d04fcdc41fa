#!/bin/bash
# A machine booted once and saved when its start-up is over, for the scripts that restore it. Besides the environment
# of machine.sh: KEPT.
source "${BASH_SOURCE[0]%/*}/machine.sh"

make_machine
start_machine
introduce_machine
guest 'systemctl is-system-running --wait; sync' || :
mark booted
leave_machine
keep_machine
mark saved
