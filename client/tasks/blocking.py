"""The client for programs without asyncio; what `sandbox task` uses."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from client.tasks.files import MachineFiles
from client.tasks.processes import Process, ProcessList, StdinTaken, Stream
from client.tasks.reading import Answer, LogReading
from client.tasks.replies import Artifact, ArtifactPage, Continued, LogLine, RunNetwork, Task, TaskPage
from client.tasks.steering import Steering
from foundation.errors import ServiceUnavailable, TaskyardError
from foundation.urls import without_credentials


class TaskClient(Steering, MachineFiles):
    """Task runs on one server. Refusals are raised as the errors of ``foundation.errors``, by their code.

    ``token`` is sent as a bearer token, for a server behind something that asks for one. No answer may take longer than
    ``timeout_seconds``, except a log that is followed.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, token: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.server = server.rstrip("/")
        self._address = without_credentials(self.server)
        self._seconds = timeout_seconds
        transport = httpx.HTTPTransport(retries=CONNECT_RETRIES, verify=calls.trust(self.server))
        with reachable(self._address):
            self._http = httpx.Client(
                base_url=self.server,
                timeout=calls.timeout(timeout_seconds),
                headers=calls.headers(token),
                transport=transport,
            )

    def submit(self, manifest: str | Mapping[str, Any]) -> str:
        """Submit a manifest, as YAML or JSON text or as data; the run's id.

        Raises InvalidManifest (``faults(error)`` lists every fault) and DuplicateTaskId.
        """
        return str(self.submit_raw(manifest)["task_id"])

    def submit_raw(self, manifest: str | Mapping[str, Any]) -> Any:
        """The same with the server's own reply."""
        return self._send(calls.submit(manifest))

    def validate(self, manifest: str | Mapping[str, Any]) -> Any:
        """Have a manifest looked at as if it were submitted, and start nothing; raises what ``submit`` raises."""
        return self._send(calls.submit(manifest, dry_run=True))

    def retry(self, task_id: str) -> Any:
        """Submit the manifest of a run again, under an id of its own; the server's reply."""
        return self._send(calls.retry(task_id))

    def resume(self, task_id: str, prompt: str, *, new_id: str | None = None, conversation: bool = True) -> Any:
        """Start a run on the files that an ended one has left, in its agent's conversation; the server's reply."""
        return self._send(calls.resume(task_id, prompt, new_id, conversation=conversation))

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
        """A page of runs, newest first by default. ``state`` is a comma-separated list."""
        wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
        return TaskPage.model_validate(self.find_raw(wanted, labels or {}))

    def find_raw(self, parameters: Mapping[str, str | int | None], labels: Mapping[str, str]) -> Any:
        """The same as the server's own JSON."""
        return self._send(calls.find(parameters, labels))

    def get(self, task_id: str, *, patience_seconds: float = 0.0) -> Task:
        """One run as it stands. A server that is away is asked again for as long as patience lasts."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return Task.model_validate(self.raw(task_id))
            except ServiceUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RECONNECT_SECONDS)

    def raw(self, task_id: str) -> Any:
        """The server's own JSON of a run."""
        return self._send(calls.get(task_id))

    def wait(self, task_id: str, poll_seconds: float = 1.0, timeout_seconds: float | None = None) -> Task:
        """The run once it has ended. Raises TimedOut when it has not in time; the run goes on."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (task := self.get(task_id, patience_seconds=PATIENCE_SECONDS)).terminal:
            if deadline is not None and time.monotonic() + poll_seconds > deadline:
                raise still_going(task)
            time.sleep(poll_seconds)
        return task

    def cancel(self, task_id: str, reason: str | None = None, *, force: bool = False) -> Any:
        """Ask a run to end; the server's reply. Raises TaskAlreadyTerminal."""
        return self._send(calls.cancel(task_id, reason, force=force))

    def message(self, task_id: str, text: str, message_id: str | None = None) -> Any:
        """Send the agent a further message; the server's reply. With an id, sending it again changes nothing."""
        return self._send(calls.message(task_id, text, message_id))

    def close_session(self, task_id: str) -> Any:
        """Let a ``headless: false`` session end after its last answer; the server's reply."""
        return self._send(calls.close_session(task_id))

    def continue_task(self, task_id: str, *, budget_usd: float | None = None, tokens: int | None = None) -> Continued:
        """Add to the budget of a run that has used it up and waits, which goes on then; its limits from now on.

        Raises Conflict when it does not wait, InvalidParameter when that is not enough.
        """
        return Continued.model_validate(self.continue_task_raw(task_id, budget_usd=budget_usd, tokens=tokens))

    def continue_task_raw(self, task_id: str, *, budget_usd: float | None = None, tokens: int | None = None) -> Any:
        """The same as the server's own JSON."""
        return self._send(calls.continue_task(task_id, budget_usd, tokens))

    def network(self, task_id: str) -> RunNetwork:
        """What a run's machine may reach, and what it asked for."""
        return RunNetwork.model_validate(self.network_raw(task_id))

    def network_raw(self, task_id: str) -> Any:
        """The same as the server's own JSON."""
        return self._send(calls.network(task_id))

    def change_network(
        self, task_id: str, *, allow: Sequence[str] = (), remove: Sequence[str] = (), mode: str | None = None
    ) -> RunNetwork:
        """Change what a run's machine may reach: host rules to add and remove, another mode; what came of it.

        Raises Conflict for a rule to be removed that is none, TimedOut when the run's host does not answer at once.
        """
        return RunNetwork.model_validate(self.change_network_raw(task_id, allow=allow, remove=remove, mode=mode))

    def change_network_raw(
        self, task_id: str, *, allow: Sequence[str] = (), remove: Sequence[str] = (), mode: str | None = None
    ) -> Any:
        """The same as the server's own JSON."""
        return self._send(calls.change_network(task_id, allow, remove, mode))

    def artifacts(self, task_id: str, *, hidden: bool = False) -> list[Artifact]:
        """What a run has left so far."""
        return ArtifactPage.model_validate(self.artifacts_raw(task_id, hidden=hidden)).artifacts

    def artifacts_raw(self, task_id: str, *, hidden: bool = False) -> Any:
        """The same as the server's own JSON."""
        return self._send(calls.artifacts(task_id, hidden=hidden))

    def download(
        self,
        task_id: str,
        name: str,
        target: str | Path,
        progress: Progress = unwatched,
        *,
        verify: bool = True,
        force: bool = False,
    ) -> int:
        """Write an artifact to a file; its size in bytes. ``progress`` gets bytes done and bytes in all.

        What arrives is written beside the target, checked against its checksum, and only then put in place. A file with
        these very bytes is left as it is; any other is replaced only with ``force``. Raises Conflict.
        """
        return self._download(task_id, name, Path(target), progress, verify=verify, force=force)

    def download_all(
        self,
        task_id: str,
        directory: str | Path,
        progress: Progress = unwatched,
        *,
        verify: bool = True,
        force: bool = False,
    ) -> Generator[Fetched, None, None]:
        """Write every artifact of a run to a file below the directory, each called as the artifact is.

        Results come one by one: what fails, for whichever reason, stops no other. Nothing is written outside of
        the directory, through a symbolic link, or by two artifacts to one file.
        """
        batch = Batch(Path(directory))
        for artifact in self.artifacts(task_id):
            target, error = batch.target(artifact), batch.given_up
            if error is None:
                try:
                    self._download(task_id, artifact.name, target, progress, verify=verify, force=force, batch=batch)
                except TaskyardError as failure:
                    error = failure
                batch.ended(error)
            yield Fetched(artifact, target, error)

    def logs(
        self,
        task_id: str,
        *,
        follow: bool = False,
        stream: str = "all",
        tail: int = 0,
        since: str | None = None,
        after_id: int = 0,
    ) -> Generator[LogLine, None, None]:
        """Entries of the log, as they come when followed. A broken connection is resumed where it broke.

        Who stops reading before the end closes the generator (``contextlib.closing``), and so the connection.
        ``stream`` is all, stdout, stderr or events; ``tail`` asks for the last entries only; ``since`` is an ISO-8601
        time. The last entry of a run that has ended is an event of type ``completed``.
        """
        reading = LogReading(task_id, follow=follow, stream=stream, tail=tail, since=since, after_id=after_id)
        while True:
            try:
                with self._open(reading.call()) as response, understood(self._address):
                    reading.opened(response.headers)
                    for piece in response.iter_bytes():
                        yield from reading.take(piece)
                    reading.ended()
            except ServiceUnavailable as error:
                reading.broken(error)
            if reading.over:
                return
            time.sleep(RECONNECT_SECONDS)

    def exec(
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
        with self._open(executing.call()) as response:
            with understood(self._address):
                executing.opened(response.headers)
            for piece in response.iter_bytes():
                with understood(self._address):
                    written = executing.take(piece)
                executing.hand_on(written)
        return executing.ended()

    def start_process(
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
        return Process.model_validate(self._send(processes.start(task_id, key, argv, fields)))

    def processes(self, task_id: str) -> list[Process]:
        """Those of the run's machine, the agent among them, oldest first."""
        return ProcessList.model_validate(self._send(processes.every(task_id))).processes

    def process(self, task_id: str, key: str, *, wait_seconds: float = 0.0) -> Process:
        """One of them; once it has ended, or after ``wait_seconds``, 300 at most. Raises NotFound."""
        return Process.model_validate(self._send(processes.look(task_id, key, wait_seconds)))

    def process_output(
        self, task_id: str, key: str, stream: Stream = "stdout", *, offset: int = 0, follow: bool = False
    ) -> Generator[bytes, None, None]:
        """What it writes from byte ``offset`` on; with ``follow`` until it has ended.

        A connection that breaks raises ServiceUnavailable: read on from the byte that was reached.
        """
        with self._open(processes.output(task_id, key, stream, offset, follow=follow)) as response:
            yield from response.iter_bytes()

    def feed_process(self, task_id: str, key: str, data: bytes, *, offset: int = 0, close: bool = False) -> int:
        """Have ``data`` be the bytes of its stdin from ``offset`` on; how many bytes it has then.

        Sent again, what has come is left out. With ``close`` nothing comes after it. Raises Conflict, SessionClosed.
        """
        taken = self._send(processes.feed(task_id, key, data, offset, close=close))
        return StdinTaken.model_validate(taken).bytes

    def signal_process(self, task_id: str, key: str, signal: str = "TERM") -> None:
        """Send a signal to it and to all that it has started. Raises Conflict when it has ended."""
        with self._open(processes.send_signal(task_id, key, signal)):
            return

    def health(self, path: str = "/api/v1/health") -> Any:
        """The answer of one of the server's health paths, as its own JSON.

        Raises ServiceUnavailable where it is up and something that it needs is not.
        """
        return self._send(calls.health(path))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _download(
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
        with (
            self._open(calls.download(task_id, name)) as response,
            Download(name, target, response.headers, verify=verify, force=force, batch=batch) as download,
        ):
            if download.wanted:
                for piece in response.iter_bytes(CHUNK_BYTES):
                    download.take(piece)
                    progress(download.done, download.size)
            return download.finish()

    def _send(self, call: Call) -> Any:
        """The answer's JSON, in the form that the call expects."""
        with self._open(call) as response:
            answer = self._answer(response)
        with understood(self._address):
            return answer.checked(call.reply)

    def _answer(self, response: httpx.Response) -> Answer:
        answer = Answer(self._seconds)
        for piece in response.iter_bytes():
            answer.take(piece)
        return answer

    @contextmanager
    def _open(self, call: Call) -> Iterator[httpx.Response]:
        with reachable(self._address), self._http.stream(call.method, call.path, **call.options) as response:
            if not response.is_success:
                raise refusal(self._address, response.status_code, response.headers, self._answer(response).body)
            yield response
