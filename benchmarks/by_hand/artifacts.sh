#!/bin/bash
# Files out of a machine. Besides the environment of machine.sh: WRITING (makes /workspace/out in the guest)  BYTES
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
enter_machine
guest "$WRITING"
mark written
guest 'tar -c -C /workspace out' | tar -x
mark fetched
(($(cat out/* | wc -c) == BYTES))
