"""Has the embedded S3 server follow the rules of its bucket once a day: it keeps them, and by itself does nothing."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import structlog

from foundation.child_environment import child_environment
from foundation.settings import Settings

_FIRST_SECONDS = 600.0
_EVERY_SECONDS = 24 * 3600.0
_LIMIT_SECONDS = 300.0
# What one look deletes at most, in each of the parts into which the server divides its names; the next goes on there.
_COMMAND = "s3.lifecycle.run-shard -shards 0-15 -s3 127.0.0.1:{port} -events 1000000 -runtime 120s\n"

log = structlog.get_logger("retention")


async def expire_daily(settings: Settings) -> None:
    """Look once a day, for ever. Another S3 service than the embedded one does this itself."""
    if not settings.embedded_bucket:
        return
    await asyncio.sleep(_FIRST_SECONDS)
    while True:
        try:
            await expire(settings)
        except (OSError, TimeoutError) as error:
            log.warning("what is old was not deleted", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(_EVERY_SECONDS)


async def expire(settings: Settings) -> None:
    """Delete what the rules of the embedded bucket say is old. Raises OSError, TimeoutError."""
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        raise FileNotFoundError("the program 'weed' is not installed")
    # The ports beside that of S3, in the order in which the stack gives them to the server.
    base = settings.s3_port
    process = await asyncio.create_subprocess_exec(
        program, "shell", f"-master=127.0.0.1:{base + 2}.{base + 3}", f"-filer=127.0.0.1:{base + 6}.{base + 7}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=child_environment(),
    )  # fmt: skip
    try:
        command = _COMMAND.format(port=base + 1).encode()
        said, _ = await asyncio.wait_for(process.communicate(command), _LIMIT_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or b"complete" not in said:
        raise OSError(" ".join(said.decode(errors="replace").split())[-300:] or f"exit code {process.returncode}")
