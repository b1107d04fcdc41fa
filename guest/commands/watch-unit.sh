# shellcheck shell=dash
# Says when the agent's unit has no process any more. A line for each look at it, without which the loop would outlive
# its reader. A unit that is gone has written its record just before, which comes first.
while [ -d /sys/fs/cgroup/system.slice/taskyard-agent.service ] || [ ! -d /sys/fs/cgroup/system.slice ]; do \
    sleep 10; echo + || exit; done && \
    sleep 3 && echo && echo gone
