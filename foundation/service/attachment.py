"""What goes over the WebSocket of an attached process: its spec first, then bytes and controls either way.

A binary frame is a byte that says which stream, and bytes of it: 0 stdin, from the client; 1 stdout and 2 stderr, from
the host. A text frame is a control as JSON. The client's: ``{"resize": [cols, rows]}``, ``{"signal": "INT"}``,
``{"eof": true}`` and ``{"taken": bytes}``. The host's: ``{"started": {"pid", "window"}}``, ``{"taken": bytes}``, and
the last one, ``{"exit": {"code", "signal", "reason"}}`` or ``{"error": {...}}``. The reason is ``timeout`` when its
time was up, else null.

Either side says how many bytes it has taken so far, and the other sends no more beyond that than the window that it
was told: 'window' of 'started' for stdin, 'window' of the spec for stdout and stderr together. So whatever a reader
does not take waits with who wrote it, and controls always come through. A client that names no window is sent what its
connection takes, and one that heeds none is read as slowly as its process reads.
"""

from __future__ import annotations

import json
import signal as signals
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from foundation.service.processes import KEY, ProcessSpec

STDIN, STDOUT, STDERR = 0, 1, 2
#: Bytes of stdin that a host takes before it has said that it took them.
WINDOW = 2**20
#: Bytes of a stream in one frame, at most.
PIECE = 128 * 1024

_Columns = Annotated[int, Field(ge=1, le=10_000)]


def _known(name: str) -> str:
    name = name.upper().removeprefix("SIG")
    if f"SIG{name}" not in signals.Signals.__members__:
        raise ValueError("is no signal; send a name such as INT, TERM or KILL")
    return name


Signal = Annotated[str, Field(max_length=20), AfterValidator(_known)]


class Attachment(ProcessSpec):
    """The first frame: the process, and how the client takes what it writes."""

    key: str = Field("attached", pattern=rf"^{KEY.pattern}$")
    window: int | None = Field(None, ge=2**14, le=2**26)


class Control(BaseModel):
    """A later text frame of the client's. What a newer one says beside it means nothing."""

    model_config = ConfigDict(extra="ignore")

    resize: tuple[_Columns, _Columns] | None = None
    signal: Signal | None = None
    eof: bool = False
    taken: int | None = Field(None, ge=0)


def frame(**control: Any) -> str:
    """A text frame with one control."""
    return json.dumps(control)


class Window:
    """How much one side may still send of what the other takes; ``size`` None is no limit."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self.sent = 0
        self._taken = 0

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return PIECE if self._size is None else max(0, self._taken + self._size - self.sent)

    def take(self, taken: int) -> None:
        """The other side has taken so many bytes in all."""
        self._taken = max(self._taken, min(taken, self.sent))


class Taken:
    """When to tell the other side how much was taken: after a quarter of what it may send."""

    def __init__(self, size: int) -> None:
        self._step = size // 4
        self.total = 0
        self._told = 0

    def add(self, count: int) -> bool:
        """Whether the other side is to be told now, the ``total``."""
        self.total += count
        if self.total - self._told < self._step:
            return False
        self._told = self.total
        return True
