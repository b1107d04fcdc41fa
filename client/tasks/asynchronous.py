"""The client for asyncio programs: the methods of ``TaskClient``, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from client.refusals import reachable, refusal, still_going, understood
from client.tasks import calls, processes
from client.tasks.calls import (
    CONNECT_RETRIES,
    DEFAULT_SERVER,
    PATIENCE_SECONDS,
    RECONNECT_SECONDS,
    TIMEOUT_SECONDS,
    Call,
)
from client.tasks.download import CHUNK_BYTES, Batch, Download, Fetched, Progress, unwatched
from client.tasks.executing import Executed, Executing, Output
from client.tasks.files import AsyncMachineFiles
from client.tasks.processes import Process, ProcessList, StdinTaken, Stream
from client.tasks.reading import Answer, LogReading
from client.tasks.replies import Artifact, ArtifactPage, Continued, LogLine, RunNetwork, Task, TaskPage
from client.tasks.steering import AsyncSteering
from foundation.errors import ServiceUnavailable, TaskyardError
from foundation.urls import without_credentials


class AsyncTaskClient(AsyncSteering, AsyncMachineFiles):
    """Task runs on one server; every method does what its namesake of ``TaskClient`` does."""

    def __init__(
        self, server: str = DEFAULT_SERVER, token: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.server = server.rstrip("/")
        self._address = without_credentials(self.server)
        self._seconds = timeout_seconds
        transport = httpx.AsyncHTTPTransport(retries=CONNECT_RETRIES, verify=calls.trust(self.server))
        with reachable(self._address):
            self._http = httpx.AsyncClient(
                base_url=self.server,
                timeout=calls.timeout(timeout_seconds),
                headers=calls.headers(token),
                transport=transport,
            )

    async def submit(self, manifest: str | Mapping[str, Any]) -> str:
        """Submit a manifest, as YAML or JSON text or as data; the run's id."""
        task_id: str = (await self.submit_raw(manifest))["task_id"]
        return task_id

    async def validate(self, manifest: str | Mapping[str, Any]) -> Any:
        """Have a manifest looked at as if it were submitted, and start nothing; the server's reply."""
        return await self._send(calls.submit(manifest, dry_run=True))

    async def retry(self, task_id: str) -> Any:
        """Submit the manifest of a run again, under an id of its own; the server's reply."""
        return await self._send(calls.retry(task_id))

    async def submit_raw(self, manifest: str | Mapping[str, Any]) -> Any:
        """The same with the server's own reply."""
        return await self._send(calls.submit(manifest))

    async def resume(self, task_id: str, prompt: str, *, new_id: str | None = None, conversation: bool = True) -> Any:
        """Start a run on the files that an ended one has left, in its agent's conversation; the server's reply."""
        return await self._send(calls.resume(task_id, prompt, new_id, conversation=conversation))

    async def find(
        self,
        *,
        state: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        sort: str | None = None,
        order: str | None = None,
    ) -> TaskPage:
        """A page of runs, newest first by default. ``state`` is a comma-separated list."""
        wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
        return TaskPage.model_validate(await self.find_raw(wanted, labels or {}))

    async def find_raw(self, parameters: Mapping[str, str | int | None], labels: Mapping[str, str]) -> Any:
        """The same as the server's own JSON."""
        return await self._send(calls.find(parameters, labels))

    async def get(self, task_id: str, *, patience_seconds: float = 0.0) -> Task:
        """One run as it stands. A server that is away is asked again for as long as patience lasts."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return Task.model_validate(await self.raw(task_id))
            except ServiceUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RECONNECT_SECONDS)

    async def raw(self, task_id: str) -> Any:
        """The server's own JSON of a run."""
        return await self._send(calls.get(task_id))

    async def wait(self, task_id: str, poll_seconds: float = 1.0, timeout_seconds: float | None = None) -> Task:
        """The run once it has ended. Raises TimedOut when it has not in time; the run goes on."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (task := await self.get(task_id, patience_seconds=PATIENCE_SECONDS)).terminal:
            if deadline is not None and time.monotonic() + poll_seconds > deadline:
                raise still_going(task)
            await asyncio.sleep(poll_seconds)
        return task

    async def cancel(self, task_id: str, reason: str | None = None, *, force: bool = False) -> Any:
        """Ask a run to end; the server's reply."""
        return await self._send(calls.cancel(task_id, reason, force=force))

    async def message(self, task_id: str, text: str, message_id: str | None = None) -> Any:
        """Send the agent a further message; the server's reply. With an id, sending it again changes nothing."""
        return await self._send(calls.message(task_id, text, message_id))

    async def close_session(self, task_id: str) -> Any:
        """Let a ``headless: false`` session end after its last answer; the server's reply."""
        return await self._send(calls.close_session(task_id))

    async def continue_task(
        self, task_id: str, *, budget_usd: float | None = None, tokens: int | None = None
    ) -> Continued:
        """Add to the budget of a run that has used it up and waits, which goes on then; its limits from now on.

        Raises Conflict when it does not wait, InvalidParameter when that is not enough.
        """
        return Continued.model_validate(await self.continue_task_raw(task_id, budget_usd=budget_usd, tokens=tokens))

    async def continue_task_raw(
        self, task_id: str, *, budget_usd: float | None = None, tokens: int | None = None
    ) -> Any:
        """The same as the server's own JSON."""
        return await self._send(calls.continue_task(task_id, budget_usd, tokens))

    async def network(self, task_id: str) -> RunNetwork:
        """What a run's machine may reach, and what it asked for."""
        return RunNetwork.model_validate(await self.network_raw(task_id))

    async def network_raw(self, task_id: str) -> Any:
        """The same as the server's own JSON."""
        return await self._send(calls.network(task_id))

    async def change_network(
        self, task_id: str, *, allow: Sequence[str] = (), remove: Sequence[str] = (), mode: str | None = None
    ) -> RunNetwork:
        """Change what a run's machine may reach: host rules to add and remove, another mode; what came of it.

        Raises Conflict for a rule to be removed that is none, TimedOut when the run's host does not answer at once.
        """
        return RunNetwork.model_validate(await self.change_network_raw(task_id, allow=allow, remove=remove, mode=mode))

    async def change_network_raw(
        self, task_id: str, *, allow: Sequence[str] = (), remove: Sequence[str] = (), mode: str | None = None
    ) -> Any:
        """The same as the server's own JSON."""
        return await self._send(calls.change_network(task_id, allow, remove, mode))

    async def artifacts(self, task_id: str, *, hidden: bool = False) -> list[Artifact]:
        """What a run has left so far."""
        return ArtifactPage.model_validate(await self.artifacts_raw(task_id, hidden=hidden)).artifacts

    async def artifacts_raw(self, task_id: str, *, hidden: bool = False) -> Any:
        """The same as the server's own JSON."""
        return await self._send(calls.artifacts(task_id, hidden=hidden))

    async def download(
        self,
        task_id: str,
        name: str,
        target: str | Path,
        progress: Progress = unwatched,
        *,
        verify: bool = True,
        force: bool = False,
    ) -> int:
        """Write an artifact to a file, checked; its size in bytes. Files are written in a thread."""
        return await self._download(task_id, name, Path(target), progress, verify=verify, force=force)

    async def download_all(
        self,
        task_id: str,
        directory: str | Path,
        progress: Progress = unwatched,
        *,
        verify: bool = True,
        force: bool = False,
    ) -> AsyncGenerator[Fetched, None]:
        """Write every artifact of a run to a file below the directory; how it went, one by one."""
        batch = Batch(Path(directory))
        for artifact in await self.artifacts(task_id):
            target, error = batch.target(artifact), batch.given_up
            if error is None:
                try:
                    await self._download(
                        task_id, artifact.name, target, progress, verify=verify, force=force, batch=batch
                    )
                except TaskyardError as failure:
                    error = failure
                batch.ended(error)
            yield Fetched(artifact, target, error)

    async def logs(
        self,
        task_id: str,
        *,
        follow: bool = False,
        stream: str = "all",
        tail: int = 0,
        since: str | None = None,
        after_id: int = 0,
    ) -> AsyncGenerator[LogLine, None]:
        """Entries of the log, as they come when followed. A broken connection is resumed where it broke.

        Who stops reading before the end closes the generator (``contextlib.aclosing``), and so the connection.
        """
        reading = LogReading(task_id, follow=follow, stream=stream, tail=tail, since=since, after_id=after_id)
        while True:
            try:
                async with self._open(reading.call()) as response:
                    with understood(self._address):
                        reading.opened(response.headers)
                        async for piece in response.aiter_bytes():
                            for line in reading.take(piece):
                                yield line
                        reading.ended()
            except ServiceUnavailable as error:
                reading.broken(error)
            if reading.over:
                return
            await asyncio.sleep(RECONNECT_SECONDS)

    async def exec(
        self,
        task_id: str,
        argv: Sequence[str] | None = None,
        *,
        shell: str | None = None,
        user: str | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        limits: Mapping[str, float] | None = None,
        output: Output | None = None,
    ) -> Executed:
        """Run a command in the run's machine, to its end; how it ended, and what it wrote.

        ``argv`` is a list of words, ``shell`` a line in its place. ``user`` is agent by default, ``directory`` the
        workspace. ``limits`` are cpu_seconds, memory_bytes, open_files, processes and timeout (seconds). ``output``
        is called with 'stdout' or 'stderr' and bytes as they come, which are not kept then. A command that ends with
        any code is no error. Whoever stops waiting ends it. Raises MachineUnavailable, HostUnreachable.
        """
        executing = Executing(
            task_id,
            argv,
            shell=shell,
            user=user,
            directory=directory,
            environment=environment,
            stdin=stdin,
            limits=limits,
            output=output,
        )
        async with self._open(executing.call()) as response:
            with understood(self._address):
                executing.opened(response.headers)
            async for piece in response.aiter_bytes():
                with understood(self._address):
                    written = executing.take(piece)
                executing.hand_on(written)
        return executing.ended()

    async def start_process(
        self,
        task_id: str,
        key: str,
        argv: Sequence[str] | None = None,
        *,
        shell: str | None = None,
        user: str | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bool = False,
        keep: bool = False,
        limits: Mapping[str, float] | None = None,
    ) -> Process:
        """Start a process in the run's machine that lives until it ends, once for its key; parameters as of ``exec``.

        With ``stdin``, ``feed_process`` gives it more; with ``keep``, its output can be read when the machine is gone.
        Raises Conflict when the key is that of another process.
        """
        fields: dict[str, object] = {"shell": shell, "user": user, "directory": directory, "stdin": stdin}
        fields |= {"environment": environment, "limits": limits, "keep": keep or None}
        return Process.model_validate(await self._send(processes.start(task_id, key, argv, fields)))

    async def processes(self, task_id: str) -> list[Process]:
        """Those of the run's machine, the agent among them, oldest first."""
        return ProcessList.model_validate(await self._send(processes.every(task_id))).processes

    async def process(self, task_id: str, key: str, *, wait_seconds: float = 0.0) -> Process:
        """One of them; once it has ended, or after ``wait_seconds``, 300 at most. Raises NotFound."""
        return Process.model_validate(await self._send(processes.look(task_id, key, wait_seconds)))

    async def process_output(
        self, task_id: str, key: str, stream: Stream = "stdout", *, offset: int = 0, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """What it writes from byte ``offset`` on; with ``follow`` until it has ended.

        A connection that breaks raises ServiceUnavailable: read on from the byte that was reached.
        """
        async with self._open(processes.output(task_id, key, stream, offset, follow=follow)) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def feed_process(self, task_id: str, key: str, data: bytes, *, offset: int = 0, close: bool = False) -> int:
        """Have ``data`` be the bytes of its stdin from ``offset`` on; how many bytes it has then.

        Sent again, what has come is left out. With ``close`` nothing comes after it. Raises Conflict, SessionClosed.
        """
        taken = await self._send(processes.feed(task_id, key, data, offset, close=close))
        return StdinTaken.model_validate(taken).bytes

    async def signal_process(self, task_id: str, key: str, signal: str = "TERM") -> None:
        """Send a signal to it and to all that it has started. Raises Conflict when it has ended."""
        async with self._open(processes.send_signal(task_id, key, signal)):
            return

    async def health(self, path: str = "/api/v1/health") -> Any:
        """The answer of one of the server's health paths, as its own JSON."""
        return await self._send(calls.health(path))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _download(
        self,
        task_id: str,
        name: str,
        target: Path,
        progress: Progress,
        *,
        verify: bool,
        force: bool,
        batch: Batch | None = None,
    ) -> int:
        async with self._open(calls.download(task_id, name)) as response:
            download = Download(name, target, response.headers, verify=verify, force=force, batch=batch)
            try:
                await asyncio.to_thread(download.open)
                if download.wanted:
                    async for piece in response.aiter_bytes(CHUNK_BYTES):
                        await asyncio.to_thread(download.take, piece)
                        progress(download.done, download.size)
                return await asyncio.to_thread(download.finish)
            finally:
                # A thread that still writes is waited for, also by who was cancelled.
                await asyncio.shield(asyncio.to_thread(download.close))

    async def _send(self, call: Call) -> Any:
        async with self._open(call) as response:
            answer = await self._answer(response)
        with understood(self._address):
            return answer.checked(call.reply)

    async def _answer(self, response: httpx.Response) -> Answer:
        answer = Answer(self._seconds)
        async for piece in response.aiter_bytes():
            answer.take(piece)
        return answer

    @asynccontextmanager
    async def _open(self, call: Call) -> AsyncIterator[httpx.Response]:
        with reachable(self._address):
            async with self._http.stream(call.method, call.path, **call.options) as response:
                if not response.is_success:
                    body = (await self._answer(response)).body
                    raise refusal(self._address, response.status_code, response.headers, body)
                yield response
