#!/bin/bash
# Commands over an open connection. Besides the environment of machine.sh: TIMES
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
enter_machine
mark entered
for ((number = 1; number <= TIMES; number++)); do
    guest true
    mark "command_$number"
done
