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
#: In memory: what must not reach a disk, and what a full disk must not keep from being written.
VOLATILE_DIR = "/run/taskyard"
#: NAME=value lines that hold for every program: the way to the proxy, and whom to trust. Every process's unit and every
#: login read it; what a run's secrets name wins.
GUEST_ENVIRONMENT = "/etc/environment"
#: NUL-separated NAME=value pairs: a run's secrets, which its agent gets.
ENVIRONMENT = f"{VOLATILE_DIR}/environment"
MCP_CONFIG = f"{VOLATILE_DIR}/mcp.json"
#: Where Claude Code keeps its conversations, each in the directory of its project: on the workspace disk, which the
#: host reads also when the guest is dead, and in the git directory, where neither git nor the agent's work meets them.
CONVERSATIONS = f"{WORKSPACE}/.git/taskyard/projects"

# --- Processes --------------------------------------------------------------------------------------------------------
# A process has a directory on the root disk, of which a follower reads on after any crash but the machine's, one in
# memory, and a unit. Those of the agent are older than the others, and in places of their own.

AGENT_KEY = "agent"
SESSION_DIR = "/var/lib/taskyard/agent"
AGENT_UNIT = "taskyard-agent"
#: Directories of all others, each by its key.
PROCESSES_DIR = "/var/lib/taskyard/processes"
VOLATILE_PROCESSES_DIR = f"{VOLATILE_DIR}/processes"
#: And then the key.
PROCESS_UNIT = "taskyard-process-"
#: Control groups of units: there as long as the unit has a process; of the kernel, so that asking costs no process.
UNIT_CGROUPS = "/sys/fs/cgroup/system.slice"

#: Files of a process's directory that the host lays there; guest/process/run-process says what they hold.
PROCESS_FILES = ("argv", "workdir", "inbox", "delivered", "stdout", "stderr", "began")
#: Files that the guest's programs make there: marks, and a lock.
PROCESS_MARKS = ("started", "closed", "lock")
#: Programs that are laid into its bin/; the files of guest/process. What a later version says to them holds for these.
PROCESS_PROGRAMS = ("run-process", "record-exit", "deliver", "close")
#: In its directory in memory. An empty line from the start; at the end: when, by which signal and why it ended, and
#: exit code, bytes of stdout, bytes of stderr. Machines of earlier versions have it on the disk.
EXIT_RECORD = "exit"
PROCESS_ENVIRONMENT = "session-environment"
#: By which another start under the same key is known.
SPEC_DIGEST = "spec"
#: There from the first stop on: a process that was not started by then never is.
STOPPED = "stopped"
START_LOCK = "start.lock"

#: Exit code in the record of a process that had to be killed.
KILLED = 137
#: Exit codes of guest/process/deliver: stdin takes no more; bytes before these have not come.
INBOX_CLOSED = 3
INBOX_GAP = 4
#: Exit codes of the start: there is one by that key, or another; there are too many; the user is unknown.
STARTED_BEFORE = 5
STARTED_AS_ANOTHER = 6
TOO_MANY_PROCESSES = 7
NO_SUCH_USER = 8
#: Exit code of a signal to what has ended.
NO_PROCESS = 9

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
    *(f"useradd --uid {AGENT_UID} ", f" {AGENT_USER}\n", f'"{AGENT_UID}:{AGENT_UID}"'),
    *(f" {WORKSPACE}\n", f'"{WORKSPACE}"'),
    *(f"$volatile/{name}" for name in (EXIT_RECORD, SPEC_DIGEST, STOPPED, START_LOCK)),
    *(f'"{name}"' for name in (ENVIRONMENT.rpartition("/")[2], PROCESS_ENVIRONMENT)),
    *(f"$dir/{name}" for name in (*PROCESS_FILES, *PROCESS_MARKS)),
    *(f"{KILLED}, map", f"exit {INBOX_CLOSED} if ", f"exit {INBOX_GAP} if "),
    *(f"{STARTED_AS_ANOTHER} : {STARTED_BEFORE})", f"exit {TOO_MANY_PROCESSES} }}", f"exit {NO_SUCH_USER} }}"),
    f"exit {NO_PROCESS} if ",
    *(f"sleep {FIGURES_SECONDS};", f"echo {FIGURES_END} "),
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
