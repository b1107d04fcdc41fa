#!/bin/bash
# Into a machine over one open connection: commands by ssh, a file there and back by sftp, and one from a web server of
# the guest by `ssh -L`. Besides the environment of machine.sh:
#   TIMES                   how many commands         BYTES        of the file
#   SERVING  SERVED  PORT_THERE   a command that starts the server, the path of the file there, and the server's port
#   FORWARDED                     a free port of loopback
source "${BASH_SOURCE[0]%/*}/machine.sh"

restore_machine
enter_machine
guest "$SERVING"
guest -O forward -L "127.0.0.1:$FORWARDED:127.0.0.1:$PORT_THERE"
until curl -sfI -o served "http://127.0.0.1:$FORWARDED/$SERVED"; do sleep 0.1; done
head -c "$BYTES" /dev/urandom >file
mark entered
for ((number = 1; number <= TIMES; number++)); do
    guest true
    mark "command_$number"
done
transfer <<<'put file /dev/shm/file'
mark put
transfer <<<'get /dev/shm/file back'
mark got
curl -sf -o served "http://127.0.0.1:$FORWARDED/$SERVED"
mark fetched
cmp file back
(($(wc -c <served) == BYTES))
