#!/bin/bash
# From an image to the end of the first command over SSH.
source "${BASH_SOURCE[0]%/*}/machine.sh"

make_machine
mark made
start_machine
introduce_machine
mark introduced
until guest true; do :; done
mark first_command
