"""What a guest and its host have agreed on: places, addresses, ids, names, words and exit codes.

The host's programs take them from here. Files of the guest are shell and perl and write them down themselves; what they
write is listed in ``IN_GUEST_FILES``, and a test holds both sides to it, in both directions. A change of what the
*image* holds makes another image, and machines of the image before live on: let what the host sends fit both.

Nothing of the project is imported here.
"""

from __future__ import annotations

# --- The agent's user -------------------------------------------------------------------------------------------------

AGENT_USER = "agent"
#: User and group id. Workspace disks are made with it, and read back as its.
AGENT_UID = 1000

# --- Places -----------------------------------------------------------------------------------------------------------

#: Where the workspace disk is mounted, and the agent works.
WORKSPACE = "/workspace"
#: On the root disk: the agent's session, of which a follower reads on after any crash but the machine's.
SESSION_DIR = "/var/lib/taskyard/agent"
#: In memory: what must not reach a disk, and what a full disk must not keep from being written.
VOLATILE_DIR = "/run/taskyard"
#: NAME=value lines that hold for every program: the way to the proxy, and whom to trust. The agent's unit and every
#: login read it; what a run's secrets name wins.
GUEST_ENVIRONMENT = "/etc/environment"
#: NUL-separated NAME=value pairs: a run's secrets, and what the session itself sets.
ENVIRONMENT = f"{VOLATILE_DIR}/environment"
SESSION_ENVIRONMENT = f"{VOLATILE_DIR}/session-environment"
#: An empty line from the start; at the end: exit code, bytes of stdout, bytes of stderr.
EXIT_RECORD = f"{VOLATILE_DIR}/exit"
#: Where machines of earlier versions have it.
EXIT_RECORD_BEFORE = f"{SESSION_DIR}/exit"
#: There from the first stop on: an agent that was not started by then never is.
STOPPED = f"{VOLATILE_DIR}/stopped"
START_LOCK = f"{VOLATILE_DIR}/start.lock"
MCP_CONFIG = f"{VOLATILE_DIR}/mcp.json"
#: Files of SESSION_DIR; guest/agent/run-agent says what they hold.
SESSION_FILES = ("argv", "workdir", "inbox", "delivered", "stdout", "stderr")
#: Files of SESSION_DIR that the guest's programs make: marks, and a lock.
SESSION_MARKS = ("started", "closed", "lock")
#: A message on its way to the inbox, in VOLATILE_DIR.
MESSAGE_DRAFT = f"{VOLATILE_DIR}/message"
#: Programs that are laid into bin/ of SESSION_DIR; the files of guest/agent.
SESSION_PROGRAMS = ("run-agent", "record-exit", "deliver", "close")

# --- The agent's unit -------------------------------------------------------------------------------------------------

AGENT_UNIT = "taskyard-agent"
#: There as long as the unit has a process; of the kernel, so that asking costs no process.
AGENT_CGROUP = f"/sys/fs/cgroup/system.slice/{AGENT_UNIT}.service"
#: Exit code in the record of an agent that had to be killed.
KILLED = 137
#: Exit code of guest/agent/deliver when the session takes no more messages.
SESSION_CLOSED = 3
#: The line of the inbox that ends the session.
CLOSE_LINE = "close"
#: The line that the watch over the unit writes when it has ended.
UNIT_GONE = "gone"

# --- Attached processes -----------------------------------------------------------------------------------------------

#: Control groups of the processes that end with their clients: one for each connection, and in it one for each process.
ATTACHED_GROUPS = "/sys/fs/cgroup/taskyard"
#: In memory: for each connection a directory with the FIFOs by which shells and the program that starts them speak.
ATTACHED_PLACES = "/run/taskyard-attached"

# --- Figures ----------------------------------------------------------------------------------------------------------

#: Seconds between two blocks of figures, each ended by this line.
FIGURES_SECONDS = 5
FIGURES_END = "."

# --- The network: that of QEMU's user mode ----------------------------------------------------------------------------

NETWORK_ADDRESS = "10.0.2.0"
NETWORK_BITS = 24
#: The way out, for who has one: how a guest names its host.
ROUTER_ADDRESS = "10.0.2.2"
GUEST_ADDRESS = "10.0.2.15"
MODEL_GATEWAY_ADDRESS = "10.0.2.100"
MODEL_GATEWAY_PORT = 80
MODEL_GATEWAY_URL = f"http://{MODEL_GATEWAY_ADDRESS}"
#: The way out: an HTTP proxy, which decides by the task's network policy.
EGRESS_ADDRESS = "10.0.2.101"
EGRESS_PORT = 3128
#: Where the guest's own redirect takes connections of programs that know no proxy, and out of which range it gives an
#: address to each name that they ask for.
REDIRECT_PORT = 1021
NAMES_NETWORK = "198.18.0.0"
SSH_PORT = 22

# --- Hardware ---------------------------------------------------------------------------------------------------------

#: The virtio serial port on which a machine gets its identity.
IDENTITY_PORT = "org.taskyard.identity"
#: The workspace disk is found by its serial: names of disks depend on the order in which they came.
WORKSPACE_SERIAL = "workspace"
#: The root disk is there from the start, and the first.
ROOT_DISK = "vda"
#: By the kernel's own naming, which its command line asks for.
INTERFACE = "eth0"

# --- The identity protocol --------------------------------------------------------------------------------------------
# The host sends messages of fields, name=value, each answered by a line.

FIELD_SEPARATOR = "\t"
MESSAGE_END = "\0"
READY = "ready"
#: And a reason after it.
ERROR = "error"
#: The first message has them all. Later ones always bring the first two: a guest that has slept needs no more.
IDENTITY_FIELDS = ("time", "seed", "hostname", "machine-id", "boot-id", "authorized-keys", "host-key", "grow")

# --- What guest files write down, and how -----------------------------------------------------------------------------

IN_GUEST_FILES = (
    *(f"useradd --uid {AGENT_UID} ", f" {AGENT_USER}\n", f"--reuid={AGENT_USER} ", f'"{AGENT_UID}:{AGENT_UID}"'),
    *(f" {WORKSPACE}\n", f'"{WORKSPACE}"'),
    *(EXIT_RECORD, EXIT_RECORD_BEFORE, AGENT_CGROUP),
    *(f'"$volatile"/{name.rpartition("/")[2]}' for name in (ENVIRONMENT, SESSION_ENVIRONMENT)),
    *(f"$volatile/{name.rpartition('/')[2]}" for name in (EXIT_RECORD, MESSAGE_DRAFT)),
    *(f"$dir/{name}" for name in (*SESSION_FILES, *SESSION_MARKS)),
    *(f"'%s %s %s\\n' {KILLED} ", f"exit {SESSION_CLOSED}\n", f"printf '{CLOSE_LINE}\\n'", f"= {CLOSE_LINE} ]"),
    *(f"echo {UNIT_GONE}\n", f"sleep {FIGURES_SECONDS};", f"echo {FIGURES_END} "),
    *(f"http://{EGRESS_ADDRESS}:{EGRESS_PORT}\n", f",{GUEST_ADDRESS},{MODEL_GATEWAY_ADDRESS}\n"),
    f'"{GUEST_ENVIRONMENT}"',
    *(f"sockaddr_in {EGRESS_PORT}, inet_aton '{EGRESS_ADDRESS}'", f"{EGRESS_ADDRESS} tcp dport {EGRESS_PORT} "),
    *(f"{MODEL_GATEWAY_ADDRESS} tcp dport {MODEL_GATEWAY_PORT} ", f" tcp sport {SSH_PORT} ", f"'{NAMES_NETWORK}'"),
    *(f"redirect to :{REDIRECT_PORT}\n", f"sockaddr_in {REDIRECT_PORT}, ", f" {NETWORK_ADDRESS}/{NETWORK_BITS} "),
    *(f"'{ROUTER_ADDRESS}'", f" {ROUTER_ADDRESS}\n", f" {GUEST_ADDRESS}/{NETWORK_BITS} ", f"dev {INTERFACE}\n"),
    *(f'"{ATTACHED_GROUPS}"', f'"{ATTACHED_PLACES}"'),
    *(f"'{IDENTITY_PORT}'", f"/^{WORKSPACE_SERIAL}$/", f"/block/{ROOT_DISK}/"),
    *(f'"{READY}\\n"', f"'{ERROR} '", "split /\\t/", 'index $buffer, "\\0"'),
)
