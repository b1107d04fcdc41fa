"""A typed client of the REST API: what `sandbox task` uses, and any Python program may."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict

from foundation.errors import InvalidManifest, ServiceUnavailable, TaskyardError

DEFAULT_SERVER = "http://localhost:8122"

# How long somebody who waits for a run bears with a server that is away.
PATIENCE_SECONDS = 60.0

_TERMINAL = frozenset({"completed", "failed", "failed_preserved", "cancelled"})
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# The server says something at least every ten seconds while a log is followed.
_FOLLOW_TIMEOUT = httpx.Timeout(40.0, connect=5.0)
_RECONNECT_SECONDS = 1.0
_RETRIES = 2


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class Progress(_Reply):
    """Live figures of the agent."""

    output_bytes: int = 0
    tool_calls: int = 0
    current_tool: str | None = None
    last_activity_at: datetime | None = None


class Transition(_Reply):
    """One change of state."""

    state: str
    at: datetime


class Task(_Reply):
    """A run. Lists leave the last six fields empty."""

    id: str
    name: str
    state: str
    labels: dict[str, str] = {}
    created_at: datetime
    started_at: datetime | None = None
    state_changed_at: datetime
    state_message: str | None = None
    vm_name: str | None = None
    exit_code: int | None = None
    error: str | None = None
    cause: str | None = None
    progress: Progress = Progress()
    live: bool = True
    host: str | None = None
    result: str | None = None
    ssh_command: str | None = None
    usage: dict[str, int] | None = None
    transitions: list[Transition] = []

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self.state in _TERMINAL


class TaskPage(_Reply):
    """A page of a list."""

    tasks: list[Task]
    total_count: int
    limit: int
    offset: int
    has_more: bool


class Artifact(_Reply):
    """One stored artifact; ``checksum`` is ``sha256:`` and hex digits."""

    name: str
    path: str
    size_bytes: int
    content_type: str
    checksum: str
    created_at: datetime


class LogLine(_Reply):
    """One entry of the run log. ``data`` is a line of output, or null for an event, whose fields are its own."""

    timestamp: datetime
    stream: str
    id: int | None = None
    data: str | None = None
    type: str | None = None

    @property
    def event(self) -> dict[str, Any]:
        """Fields of an event."""
        return {"type": self.type} | (self.model_extra or {})


class TaskClient:
    """Task runs on one server. Refusals are raised as the errors of ``foundation.errors``, by their code."""

    def __init__(self, server: str = DEFAULT_SERVER) -> None:
        self.server = server.rstrip("/")
        self._http = httpx.Client(
            base_url=self.server,
            timeout=_TIMEOUT,
            headers={"User-Agent": "taskyard"},
            transport=httpx.HTTPTransport(retries=_RETRIES),
        )

    def submit(self, manifest: str | Mapping[str, Any]) -> str:
        """Submit a manifest, as YAML or JSON text or as data; the run's id."""
        task_id: str = self.submit_raw(manifest)["task_id"]
        return task_id

    def submit_raw(self, manifest: str | Mapping[str, Any]) -> Any:
        """The same with the server's own reply."""
        if isinstance(manifest, str):
            # The server tells YAML and JSON apart when no type says which it is.
            return self._call("POST", "", content=manifest.encode(), headers={"Content-Type": "text/plain"})
        return self._call("POST", "", json=dict(manifest))

    def find(
        self,
        *,
        state: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        sort: str | None = None,
        order: str | None = None,
    ) -> TaskPage:
        """A page of runs, newest first unless told otherwise. ``state`` is a comma-separated list."""
        wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
        return TaskPage.model_validate(self.find_raw(wanted, labels or {}))

    def find_raw(self, parameters: Mapping[str, str | int | None], labels: Mapping[str, str]) -> Any:
        """The same as the server's own JSON."""
        params = {key: value for key, value in parameters.items() if value is not None}
        return self._call("GET", "", params=params | {f"label.{key}": value for key, value in labels.items()})

    def get(self, task_id: str, *, patience_seconds: float = 0.0) -> Task:
        """One run as it stands. A server that is away is asked again for as long as patience lasts."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return Task.model_validate(self.raw(task_id))
            except ServiceUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RECONNECT_SECONDS)

    def raw(self, task_id: str, part: str = "") -> Any:
        """The server's own JSON of a run, or of a part of it such as ``/artifacts``."""
        return self._call("GET", f"/{quote(task_id, safe='')}{part}")

    def wait(self, task_id: str, poll_seconds: float = 1.0) -> Task:
        """The run once it has ended."""
        while not (task := self.get(task_id, patience_seconds=PATIENCE_SECONDS)).terminal:
            time.sleep(poll_seconds)
        return task

    def cancel(self, task_id: str, reason: str | None = None, *, force: bool = False) -> Any:
        """Ask a run to end; the server's reply."""
        body: dict[str, Any] = {"force": force} | ({"reason": reason} if reason else {})
        return self._call("DELETE", f"/{quote(task_id, safe='')}", json=body)

    def message(self, task_id: str, text: str, message_id: str | None = None) -> None:
        """Send the agent a further message. With an id, sending it again changes nothing."""
        body = {"text": text} | ({"id": message_id} if message_id else {})
        self._call("POST", f"/{quote(task_id, safe='')}/messages", json=body)

    def close_session(self, task_id: str) -> None:
        """Let a ``headless: false`` session end after its last answer."""
        self._call("POST", f"/{quote(task_id, safe='')}/close")

    def artifacts(self, task_id: str) -> list[Artifact]:
        """What a run has left so far."""
        return [Artifact.model_validate(item) for item in self.raw(task_id, "/artifacts")["artifacts"]]

    def download(
        self, task_id: str, name: str, target: Path, progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> int:
        """Write an artifact to a file; its size in bytes. ``progress`` gets bytes done and bytes in all.

        What arrives is written beside the target, checked against its checksum, and only then put in place.
        """
        url = f"/api/v1/tasks/{quote(task_id, safe='')}/artifacts/{quote(name)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.part")
        digest, done = hashlib.sha256(), 0
        try:
            with self._reachable(), self._http.stream("GET", url) as response, draft.open("wb") as file:
                self._check(response)
                size = int(response.headers["Content-Length"])
                for piece in response.iter_bytes():
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    progress(done, size)
            if digest.hexdigest() != response.headers["X-Checksum-SHA256"]:
                raise TaskyardError(f"'{name}' arrived damaged; download it again.")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return done

    def logs(
        self,
        task_id: str,
        *,
        follow: bool = False,
        stream: str = "all",
        tail: int = 0,
        since: str | None = None,
        after_id: int = 0,
    ) -> Iterator[LogLine]:
        """Entries of the log, as they come when followed. A broken connection is resumed where it broke.

        The last entry of a run that has ended is an event of type ``completed``.
        """
        params: dict[str, Any] = {"follow": follow, "stream": stream, "tail": tail}
        if since:
            params["since"] = since
        broken_since: float | None = None
        while True:
            try:
                for line in self._read_log(task_id, params, after_id):
                    broken_since = None
                    if line.id is not None:
                        # What was asked of the beginning is done; a resumed log goes on from here.
                        after_id, params["tail"] = line.id, 0
                    _refuse_error(line)
                    yield line
                    if line.type == "completed" and line.id is None:
                        return
                if not follow:
                    return
            except ServiceUnavailable:
                broken_since = broken_since or time.monotonic()
                if not follow or time.monotonic() - broken_since > PATIENCE_SECONDS:
                    raise
            time.sleep(_RECONNECT_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_log(self, task_id: str, params: dict[str, Any], after_id: int) -> Iterator[LogLine]:
        headers = {"Accept": "application/x-ndjson"} | ({"Last-Event-ID": str(after_id)} if after_id else {})
        url = f"/api/v1/tasks/{quote(task_id, safe='')}/logs"
        timeout = _FOLLOW_TIMEOUT if params["follow"] else _TIMEOUT
        with self._reachable(), self._http.stream("GET", url, params=params, headers=headers, timeout=timeout) as reply:
            self._check(reply)
            for line in _lines(reply.iter_bytes()):
                if line.strip():
                    yield LogLine.model_validate_json(line)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        with self._reachable():
            response = self._http.request(method, f"/api/v1/tasks{path}", **options)
        self._check(response)
        return response.json()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise TaskyardError(
                f"'{self.server}' is not the URL of a server; write one such as {DEFAULT_SERVER}."
            ) from error
        except httpx.TransportError as error:
            raise ServiceUnavailable(
                f"The server at {self.server} does not answer ({type(error).__name__}); start it with 'sandbox up', "
                "or name another with --server or TASKYARD_SERVER."
            ) from error

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        try:
            body = json.loads(response.read())
            code, message = str(body["error"]), str(body["message"])
        except (ValueError, KeyError, TypeError):
            raise TaskyardError(f"The server at {self.server} answered with status {response.status_code}.") from None
        raise _errors_by_code().get(code, TaskyardError)(message, **(body.get("details") or {}))


def faults(error: TaskyardError) -> list[dict[str, str]]:
    """Every fault of a refused manifest, as ``{field, message, validation}``."""
    found: list[dict[str, str]] = error.details.get("errors", []) if isinstance(error, InvalidManifest) else []
    return found


def _refuse_error(line: LogLine) -> None:
    """An answer that has begun tells of its failure in its last line, which is no entry of the log."""
    if line.type == "error" and line.id is None:
        raise ServiceUnavailable(str(line.event.get("message")))


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines by their newlines only; what else ends a line in Unicode may stand in a line of the log."""
    begun = b""
    for piece in pieces:
        *lines, begun = (begun + piece).split(b"\n")
        yield from lines
    if begun:
        yield begun


def _errors_by_code() -> dict[str, type[TaskyardError]]:
    known: dict[str, type[TaskyardError]] = {}
    pending: list[type[TaskyardError]] = [TaskyardError]
    while pending:
        error = pending.pop()
        known[error.code] = error
        pending += error.__subclasses__()
    return known
