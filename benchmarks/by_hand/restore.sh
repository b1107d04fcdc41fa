#!/bin/bash
# From a kept machine to the end of the first command over SSH.
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
mark started
enter_machine
mark first_command
