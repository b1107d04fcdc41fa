"""A thin synchronous layer over QEMU's own client of its machine protocol (QMP)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from foundation.errors import MachineError

# The library reports every lost connection as a critical error; the callers here say it better, by an exception.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class CommandRefused(MachineError):
    """QEMU took the command and answered with an error."""


def execute(socket: Path, command: str, arguments: Mapping[str, Any] | None = None, *, limit: float = 10) -> Any:
    """QEMU's answer to one command, over a connection of its own, within ``limit`` seconds.

    Raises CommandRefused with QEMU's reason, or MachineError when QEMU does not answer. Not for use on an event loop.
    """
    try:
        return asyncio.run(_execute(socket, command, dict(arguments or {}), limit))
    except ExecuteError as error:
        raise CommandRefused(f"QEMU refused {command}: {error}") from error
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise MachineError(f"QEMU does not answer {command} at {socket} ({reason}); it may have ended") from error


async def _execute(socket: Path, command: str, arguments: dict[str, Any], limit: float) -> Any:
    client = QMPClient(command)
    try:
        async with asyncio.timeout(limit):
            await client.connect(str(socket))
            return await client.execute(command, arguments)
    finally:
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(1):
                await client.disconnect()
