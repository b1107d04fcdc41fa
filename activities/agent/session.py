"""The agent's session in the guest: the process with the key ``agent``, which is spoken to in messages.

The agent may be root in its guest: any file of it may be forged, filled, frozen or gone. There is an end all the same:
what cannot be read is no record, a unit that is gone has ended, and a stop that does not succeed is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from foundation.errors import SessionClosed
from guest.contract import AGENT_KEY, AGENT_USER, MCP_CONFIG
from machines.processes import launch as processes
from machines.processes.detached import DetachedProcess
from machines.processes.following import Chunk, Ended
from machines.ssh import GuestShell
from storage.segments import GUEST_STREAMS, GuestStream

__all__ = ["AgentSession", "Chunk", "Ended", "Launch", "message_line"]


@dataclass(frozen=True)
class Launch:
    """What the agent is started with. ``prompt`` is its first message."""

    command: Sequence[str]
    workdir: str
    prompt: str
    environment: Mapping[str, str]
    mcp_config: Mapping[str, object] | None = None


def message_line(text: str) -> bytes:
    """A user message as one line of Claude Code's stream-json input, which reaches the model as it was written.

    Claude Code takes a message whose last block begins with a slash for a command of its own, and attaches the files
    that it names with ``@``. So the last block is an empty one, which Claude Code leaves out of what it sends.
    """
    blocks = [{"type": "text", "text": text}, {"type": "text", "text": ""}]
    message = {"type": "user", "message": {"role": "user", "content": blocks}}
    return json.dumps(message).encode() + b"\n"


class AgentSession:
    """One guest's agent, over the guest's shell. Every method may be called again after any failure."""

    def __init__(self, shell: GuestShell) -> None:
        self._process = DetachedProcess(shell, AGENT_KEY)

    def start(self, launch: Launch) -> None:
        """Start the agent unless it was started or stopped before."""
        files = []
        if launch.mcp_config is not None:
            files.append(processes.LaidFile(MCP_CONFIG, json.dumps(launch.mcp_config).encode(), 0o400, AGENT_USER))
        self._process.start(
            processes.Launch(
                command=launch.command,
                directory=launch.workdir,
                environment=launch.environment,
                inbox=message_line(launch.prompt),
                files=files,
            )
        )

    def deliver(self, message_id: str, text: str) -> None:
        """Hand a message over, once for each id. Raises SessionClosed."""
        try:
            self._process.deliver(message_id, message_line(text))
        except SessionClosed:
            raise SessionClosed("The agent's session is closed; the message was not delivered.") from None

    def steer(self, control_id: str, lines: Sequence[Mapping[str, object]]) -> None:
        """Write lines of the control protocol, once for each id. Raises SessionClosed."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        try:
            # No id of a message begins so.
            self._process.deliver(f"\x1e{control_id}", data)
        except SessionClosed:
            raise SessionClosed("The agent's session is closed; it cannot be steered any more.") from None

    def close(self) -> None:
        """End the session after what was delivered so far."""
        self._process.close()

    def stop(self, *, force: bool) -> bool:
        """TERM to every process of the agent, KILL to those left after the grace period; with ``force`` at once.

        False when some are left all the same; what they wrote is on the disks then. Takes a minute at most.
        """
        return self._process.stop(force=force)

    def follow(self, offsets: Mapping[GuestStream, int]) -> Iterator[Chunk | Ended | None]:
        """What the agent writes from the given offsets on, as it writes it, and at last how it ended.

        Gives None on every quiet moment (a second at most), so that the caller can look after other things.
        Raises GuestUnreachable or MachineLost when the connection breaks.
        """
        return self._process.follow({stream: offsets.get(stream, 0) for stream in GUEST_STREAMS})
