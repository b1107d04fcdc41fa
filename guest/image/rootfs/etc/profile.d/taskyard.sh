# shellcheck shell=dash
# A login has what the agent's session has.
set -a
. /etc/environment
set +a
