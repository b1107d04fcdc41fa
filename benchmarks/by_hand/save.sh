#!/bin/bash
# Boot a machine and put it into the directory $SAVED, for others to go on from.
source "${BASH_SOURCE[0]%/*}/machine.sh"

make_machine
start_machine
introduce_machine
mark introduced
save_machine "$SAVED"
mark saved
