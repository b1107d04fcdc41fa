#!/bin/bash
# A directory into a machine. Besides the environment of machine.sh: TREE
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
enter_machine
mark entered
tar -C "$TREE" --owner=agent:1000 --group=agent:1000 -c . | guest 'tar -x -C /workspace'
mark copied
