# shellcheck shell=dash
# Freezes the file system of /workspace alone: where nothing is mounted there, the whole root would stand still. A
# second freeze is refused, so one that a dead worker left behind is lifted.
# The shell does what it can itself: processes are slow to start.
mounted=
while read -r _ place _; do if [ "$place" = /workspace ]; then mounted=yes; fi; done </proc/mounts
test "$mounted" || exit 1
fsfreeze --freeze /workspace 2>/dev/null || { fsfreeze --unfreeze /workspace; fsfreeze --freeze /workspace; }
