# shellcheck shell=dash
# The exit record as it is written; that of an earlier version, which has it on the disk, if that is all there is.
file=/run/taskyard/exit; [ -e $file ] || file=/var/lib/taskyard/agent/exit; exec tail -c +1 -f $file
