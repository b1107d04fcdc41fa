"""Where things are in a host's service, and the headers of its requests."""

from __future__ import annotations

from urllib.parse import quote

BASE = "/v1"
#: Name of the unix socket of the service, in ``Settings.sockets``.
SOCKET = "host.sock"
#: The machine's boot epoch as the asker knows it; without it, whatever machine has the id answers.
EPOCH = "Taskyard-Epoch"
#: Answers without a token and without looking at anything: whoever gets an answer knows that the service is there.
ALIVE = f"{BASE}/alive"

#: What clients tell of a run, in one request to its host.
TOLD_BYTES_MOST = 32 * 2**20


def machine_path(machine_id: str, *parts: str) -> str:
    """The path of a machine, or of something of it: the parts are put behind it, each quoted as one segment."""
    return "/".join((f"{BASE}/machines/{quote(machine_id, safe='')}", *(quote(part, safe="") for part in parts)))


def log_path(place: str) -> str:
    """The path of a run's log, told as it is written; ``place`` is where the run lies in the bucket: tasks/<id>."""
    return f"{BASE}/logs/{quote(place)}"


def numbered_path(place: str) -> str:
    """The path for numbered entries of a run's log, as ``storage.live.numbered`` writes them."""
    return f"{log_path(place)}/numbered"
