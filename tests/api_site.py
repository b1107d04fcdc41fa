"""The API on a port of its own, over real Temporal and a real bucket, with a task queue that only one test uses."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from temporalio.client import Client

from api.app import create_app
from api.http.serving import listening, make_server
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.records import write_record
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, append_event, seal
from tests import waiting
from tests.stack_settings import free_ports
from tests.stand_ins.fake_steps import FakeSteps
from workflows.runs.requests import FinishRequest
from workflows.told.messages import FinishLocalRequest, LocalStatus

# Temporal forgets a run half a minute after it was told to.
PATIENCE = 90.0
until = partial(waiting.until, patience=PATIENCE)


@dataclass
class SseEvent:
    """One server-sent event as a client reads it."""

    event: str = "message"
    data: str = ""
    id: str | None = None


@dataclass
class ApiSite:
    """The running API and what stands behind it."""

    url: str
    http: httpx.AsyncClient
    settings: Settings
    temporal: Client
    bucket: Bucket
    app: Any
    steps: FakeSteps = field(init=False)

    def __post_init__(self) -> None:
        self.steps = FakeSteps(queue=self.settings.task_queue)
        for step in ("finish", "finish_local"):
            self.steps.instead[step] = self._finish

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[FakeSteps]:
        """A worker of the real workflow, with steps that the test steers; the end of a run closes its log."""
        async with self.steps.worker(self.temporal):
            yield self.steps

    async def submit(self, **parts: Any) -> str:
        """Submit a manifest that asks for nothing special; its run's id."""
        reply = await self.http.post("/api/v1/tasks", json=manifest(**parts))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["task_id"])

    async def write_log(self, task_id: str, *lines: str) -> None:
        """Append lines to the run's stdout, as its follower does."""

        def write() -> None:
            writer = RunLogWriter(self.bucket, TASKS.place(task_id), Redactor({}))
            offset = writer.resume()["stdout"]
            writer.feed("stdout", "".join(f"{line}\n" for line in lines).encode(), offset)
            writer.flush(force=True)

        await asyncio.to_thread(write)

    async def write_event(self, task_id: str, **event: Any) -> None:
        await asyncio.to_thread(append_event, self.bucket, TASKS.place(task_id), event)

    async def state(self, task_id: str) -> str:
        return str((await self.http.get(f"/api/v1/tasks/{task_id}")).json()["state"])

    async def until_listed(self, task_id: str, state: str) -> None:
        """Lists may lag behind the run by a moment."""

        async def listed() -> bool:
            return task_id in (await self.http.get("/api/v1/tasks", params={"state": state})).text

        await until(listed, f"listed as {state}")

    async def until_state(self, task_id: str, *states: str) -> None:
        async def reached() -> bool:
            return await self.state(task_id) in states

        await until(reached, f"state {states}")

    async def events(self, response: httpx.Response) -> AsyncIterator[SseEvent]:
        """The events of an answer, to its end."""
        event = SseEvent()
        async for line in _lines(response):
            if not line:
                if event.data or event.id is not None:
                    yield event
                event = SseEvent()
                continue
            name, _, value = line.partition(": ")
            if name == "data":
                event.data = f"{event.data}\n{value}" if event.data else value
            elif name in {"event", "id"}:
                setattr(event, name, value)

    async def _finish(self, request: FinishRequest | FinishLocalRequest) -> None:
        status = request.status
        record = status.record() if isinstance(status, LocalStatus) else status.model_dump(mode="json")

        def finish() -> None:
            write_record(self.bucket, TASKS.place(status.id), record)
            seal(self.bucket, TASKS.place(status.id))

        await asyncio.to_thread(finish)


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines of an event stream; httpx itself takes more characters than the format does for line ends."""
    begun = b""
    async for piece in response.aiter_bytes():
        *lines, begun = (begun + piece).split(b"\n")
        for line in lines:
            yield line.decode()


def manifest(**parts: Any) -> dict[str, Any]:
    """The smallest manifest, with the parts given."""
    data: dict[str, Any] = {
        "version": "1",
        "kind": "Task",
        "metadata": {"name": "a task"},
        "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
        "claude": {"prompt": "do it"},
    }
    for part, fields in parts.items():
        data[part] = {**data[part], **fields} if part in data and isinstance(fields, dict) else fields
    return data


def as_yaml(data: dict[str, Any]) -> str:
    """The same as YAML; JSON is YAML, and shows what is quoted."""
    return "# a manifest\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in data.items()) + "\n"


@asynccontextmanager
async def api_site(
    settings: Settings, temporal: Client, bucket: Bucket, *, like: ApiSite | None = None
) -> AsyncIterator[ApiSite]:
    """Serve the API for one test; ``like`` another that has ended: on its port and task queue."""
    port = like.settings.api_port if like else free_ports(2)
    queue = like.settings.task_queue if like else f"test-{uuid.uuid4().hex[:10]}"
    own = settings.model_copy(update={"task_queue": queue, "api_port": port, "ws_port": port + 1})
    app = create_app(own)
    server = make_server(app)
    server.config.timeout_graceful_shutdown = 1
    serving = asyncio.create_task(server.serve(sockets=listening(own)))
    try:

        async def started() -> bool:
            return server.started

        await until(started, "the API to start")
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
            yield ApiSite(url, http, own, temporal, bucket, app)
    finally:
        server.should_exit = True
        await serving
