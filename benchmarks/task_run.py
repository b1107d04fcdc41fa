"""A whole task: the hello example from submission to ``completed``, beside the same steps done one by one by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from benchmarks.case import Case, Figure, Run, Sides, Stopwatch
from benchmarks.cold_boot import script_environment
from benchmarks.lab import Lab, free_port
from cli.stack import Stack
from client import TaskClient
from examples.hello.prepare import prepare
from examples.hello.serve import serve
from foundation.errors import TaskyardError
from worker.scenario import load_scenarios
from worker.scripted_model import create_model_app
from workflows.manifest import Manifest

_MANIFEST = Path(__file__).parent.parent / "examples" / "hello" / "task.yaml"
# How a guest names the loopback interface of its host in QEMU's user-mode network.
_HOST_SEEN_BY_GUEST = "10.0.2.2"


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    data: dict[str, Any] = yaml.safe_load(_MANIFEST.read_text())
    # The package's source is fetched once for this host, as the example itself does it.
    prepared = prepare(lab.own, lab.report, lab.directory / "examples")
    with serve(prepared.path) as url, _model() as model_port:
        data["repository"] = {**data["repository"], "url": url}
        manifest = Manifest.model_validate(data)
        image = lab.image(manifest.vm.profile)
        shape = script_environment(
            image, lab.acceleration(), cpus=manifest.vm.cpus, memory=manifest.vm.memory, disk=manifest.vm.disk
        )
        environment = {
            "REPOSITORY": url,
            "BRANCH": manifest.repository.branch,
            "PROMPT": manifest.claude.prompt,
            "MODEL": manifest.claude.model,
            "MODEL_URL": f"http://{_HOST_SEEN_BY_GUEST}:{model_port}",
            "PATTERNS": " ".join(manifest.lifecycle.artifact_patterns),
        }

        def by_hand() -> Run:
            watch = lab.by_hand("task.sh", shape | environment)
            before = list(watch.laps).index("first line") + 1
            laps = list(watch.laps.values())
            return Run({"first-line": sum(laps[:before]), "completed": sum(laps)}, watch.laps)

        with _stack(lab) as client:
            yield Sides(lambda: _ours(client, data, lab), by_hand)


def _ours(client: TaskClient, data: dict[str, Any], lab: Lab) -> Run:
    submitted = time.time()
    task_id = client.submit(data)
    first_line = 0.0
    for line in client.logs(task_id, follow=True):
        if line.stream == "stdout" and not first_line:
            first_line = time.time()
            lab.report("first line of the agent")
        elif line.stream == "event":
            lab.report(str(line.event.get("message") or line.type))
    ended = time.time()
    task = client.get(task_id)
    if task.state != "completed" or not first_line:
        raise TaskyardError(f"The task of the benchmark ended as '{task.state}': {task.error}")
    return Run(
        {"first-line": first_line - submitted, "completed": ended - submitted},
        _phases(submitted, first_line, ended, [(step.state, step.at.timestamp()) for step in task.transitions]),
    )


def _phases(submitted: float, first_line: float, ended: float, entered: list[tuple[str, float]]) -> dict[str, float]:
    """Seconds in each state, of which ``running`` begins with the time to the agent's first line."""
    watch = Stopwatch(submitted)
    for (state, _), (_, left) in pairwise(entered):
        if state == "running":
            watch.lap("running, to the first line", first_line)
        watch.lap(state, left)
    watch.lap("told to the client", ended)
    return watch.laps


@contextmanager
def _stack(lab: Lab) -> Iterator[TaskClient]:
    lab.report("starting the stack")
    with Stack(lab.settings), TaskClient(f"http://127.0.0.1:{lab.settings.api_port}") as client:
        yield client


@contextmanager
def _model() -> Iterator[int]:
    """The scripted model on a port of loopback, for the runs by hand."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_model_app(load_scenarios(None)), host="127.0.0.1", port=port, log_config=None)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


CASE = Case(
    name="task-run",
    title="The hello task with the scripted model",
    by_hand="git clone, mkfs.ext4, QEMU, Claude Code over ssh, git diff and tar (`benchmarks/by_hand/task.sh`)",
    figures=(
        Figure("first-line", "from submission to the first line of Claude Code"),
        Figure("completed", "from submission to `completed`, artifacts stored"),
    ),
    open=_open,
    warm_up=True,
)
