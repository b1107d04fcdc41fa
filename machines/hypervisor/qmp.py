"""A thin synchronous layer over QEMU's own client of its machine protocol (QMP)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from qemu.qmp import ExecuteError, QMPClient, QMPError

from foundation.errors import MachineError

# The library reports every lost connection as a critical error; the callers here say it better, by an exception.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

_LOST = (QMPError, OSError, EOFError, TimeoutError)
_CONNECT_POLL_SECONDS = 0.005


class CommandRefused(MachineError):
    """QEMU took the command and answered with an error."""


class Monitor:
    """One connection to a QEMU's monitor, for several commands; a context manager. Not for use on an event loop."""

    def __init__(self, socket: Path, *, waiting: Callable[[], object] | None = None, limit: float = 10) -> None:
        """``waiting`` is called while the socket does not take connections yet: it raises to give up.

        QEMU serves one connection at a time; ``limit`` is how many seconds to wait for another one's end.
        """
        self._socket = socket
        self._limit = limit
        self._waiting = waiting
        self._runner = asyncio.Runner()
        self._client = QMPClient("monitor")

    def __enter__(self) -> Self:
        try:
            while not self._connected():
                time.sleep(_CONNECT_POLL_SECONDS)
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*_LOST):
            self._runner.run(asyncio.wait_for(self._client.disconnect(), 1))
        self._runner.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, limit: float = 10) -> Any:
        """QEMU's answer to one command. Raises CommandRefused with QEMU's reason, or MachineError without an answer."""
        with _errors_of(command, self._socket):
            return self._runner.run(asyncio.wait_for(self._client.execute(command, dict(arguments or {})), limit))

    def give(self, name: str, file: IO[bytes]) -> None:
        """Give QEMU an open file, which a later command finds under this name."""
        with _errors_of("getfd", self._socket):
            self._client.send_fd_scm(file.fileno())
        self.execute("getfd", {"fdname": name})

    def lend(self, number: int, file: IO[bytes]) -> None:
        """Give QEMU an open file, which it opens by the path ``/dev/fdset/<number>`` from then on."""
        with _errors_of("add-fd", self._socket):
            self._client.send_fd_scm(file.fileno())
        self.execute("add-fd", {"fdset-id": number})

    def _connected(self) -> bool:
        with _errors_of("connections", self._socket):
            try:
                self._runner.run(asyncio.wait_for(self._client.connect(str(self._socket)), self._limit))
            except (QMPError, OSError):
                if self._waiting is None:
                    raise
                self._waiting()
                self._client = QMPClient("monitor")
                return False
        return True


def execute(socket: Path, command: str, arguments: Mapping[str, Any] | None = None, *, limit: float = 10) -> Any:
    """QEMU's answer to one command, over a connection of its own; raises as ``Monitor.execute`` does."""
    with Monitor(socket, limit=limit) as monitor:
        return monitor.execute(command, arguments, limit=limit)


@contextlib.contextmanager
def _errors_of(command: str, socket: Path) -> Iterator[None]:
    try:
        yield
    except ExecuteError as error:
        raise CommandRefused(f"QEMU refused {command}: {error}") from error
    except _LOST as error:
        reason = str(error) or type(error).__name__
        raise MachineError(f"QEMU does not answer {command} at {socket} ({reason}); it may have ended") from error
