#!/bin/bash
# Several machines restored one after another, or side by side with a pause between their starts.
# Besides the environment of machine.sh: PORTS (one for each machine)  GAP (seconds; empty: one after another)
source "${BASH_SOURCE[0]%/*}/machine.sh"

restored() (
    mkdir "$PORT"
    cd "$PORT"
    mark "began_$PORT"
    restore_machine
    enter_machine
    mark "entered_$PORT"
    if [[ $GAP ]]; then until [[ -e ../over ]]; do sleep 0.1; done; fi
)

machines=()
for PORT in $PORTS; do
    if [[ $GAP ]]; then
        restored &
        machines+=($!)
        sleep "$GAP"
    else
        restored
    fi
done
for PORT in $PORTS; do
    until grep -q "entered_$PORT" "$MARKS"; do sleep 0.1; done
done
touch over
for machine in "${machines[@]}"; do wait "$machine"; done
