"""The stack as processes: it starts, survives, restarts what dies, refuses what cannot work, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.stack.embedded import process_environment
from cli.stack.search_attributes import wanted_attributes
from cli.stack.supervisor import PartEvent
from cli.stack.up import Stack, stack_holder
from foundation.engine import connect_engine
from foundation.errors import EngineUnavailable, HostNotReady
from foundation.settings import Settings
from storage.bucket import Bucket
from tests.stack_settings import isolated_settings

PATIENCE = 60.0
SERVICES = ("temporal", "bucket")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


class Sandbox:
    """The command `sandbox` as a child process of the test, with its output in a file."""

    def __init__(self, settings: Settings, output: Path, *arguments: str) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cli", *arguments],
                env=process_environment(settings),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str) -> None:
        until(lambda: words in self.text() or self.process.poll() is not None, f"'{words}' in: {self.text()}")
        assert words in self.text(), self.text()

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


@pytest.fixture
def settings() -> Iterator[Settings]:
    # A short path, so that the sockets lie in it too.
    with tempfile.TemporaryDirectory(prefix="ty-stack-") as home:
        yield isolated_settings(Path(home))


@pytest.fixture
def up(settings: Settings, tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(settings, tmp_path / "up.txt", "up")
    try:
        sandbox.wait_for("Up in")
        yield sandbox
    finally:
        sandbox.process.terminate()
        sandbox.process.wait(PATIENCE)


async def test_state_survives_a_restart_of_the_services(settings: Settings) -> None:
    with Stack(settings, SERVICES) as stack:
        first = list(stack.pids().values())
        client = await connect_engine(settings)
        await client.start_workflow("Anything", id="survivor", task_queue="nobody")
        Bucket(settings).put("kept", b"bytes")
    assert gone(first)
    assert stack_holder(settings) is None
    with Stack(settings, SERVICES):
        client = await connect_engine(settings)
        assert (await client.get_workflow_handle("survivor").describe()).workflow_type == "Anything"
        assert Bucket(settings).get("kept") == b"bytes"


async def test_lists_can_be_filtered_by_every_search_attribute(settings: Settings) -> None:
    with Stack(settings, ("temporal",)):
        client = await connect_engine(settings)
        for name in wanted_attributes():
            assert (await client.count_workflows(f"{name} IS NULL")).count == 0


def test_services_elsewhere_are_used_and_not_started(settings: Settings, tmp_path: Path) -> None:
    with Stack(settings, SERVICES):
        access_key, secret_key = settings.s3_credentials()
        elsewhere = Settings(
            home=tmp_path / "other",
            temporal_address=settings.temporal_target,
            s3_endpoint=settings.s3_target,
            s3_access_key=access_key,
            s3_secret_key=secret_key,
            s3_bucket="another",
        )
        with Stack(elsewhere, SERVICES) as stack:
            assert stack.pids() == {}
            assert Bucket(elsewhere).put("key", b"bytes")
    with pytest.raises(EngineUnavailable, match="TASKYARD_TEMPORAL_ADDRESS"):
        Stack(elsewhere, SERVICES).start()


def test_a_part_that_dies_is_started_again_with_its_state(settings: Settings) -> None:
    events: list[PartEvent] = []
    with Stack(settings, ("bucket",), events.append) as stack:
        Bucket(settings).put("kept", b"bytes")
        first = stack.pids()["bucket"]
        os.kill(first, signal.SIGKILL)
        until(lambda: [event.kind for event in events].count("ready") == 2, "the restart")
        assert stack.pids()["bucket"] != first
        assert Bucket(settings).get("kept") == b"bytes"
    assert [event.kind for event in events] == ["starting", "ready", "died", "starting", "ready", "stopping", "stopped"]
    assert "SIGKILL" in events[2].detail


def test_a_part_can_be_killed_and_started_by_hand(settings: Settings) -> None:
    with Stack(settings, ("bucket",), restart=False) as stack:
        first = stack.pids()["bucket"]
        stack.stop_part("bucket", signal.SIGKILL)
        assert stack.pids() == {}
        assert stack.start_part("bucket") != first


def test_a_taken_port_is_named_with_its_setting_and_its_user(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.temporal_port))
        taken.listen()
        with pytest.raises(HostNotReady) as refused:
            Stack(settings, SERVICES).start()
    assert f"Port {settings.temporal_port} for the Temporal server" in refused.value.message
    assert f"by process {os.getpid()}" in refused.value.message
    assert "TASKYARD_TEMPORAL_PORT" in refused.value.message
    assert stack_holder(settings) is None


def test_a_part_that_cannot_start_ends_the_stack_with_the_end_of_its_log(settings: Settings) -> None:
    (settings.home / "temporal" / "temporal.db").mkdir(parents=True)
    stack = Stack(settings, SERVICES)
    with pytest.raises(HostNotReady, match=r"Temporal server ended with exit code 1") as failed:
        stack.start()
    assert "unable to open database file" in failed.value.message
    assert stack.pids() == {}


def test_up_runs_everything_and_ctrl_c_leaves_no_process(up: Sandbox, settings: Settings) -> None:
    assert len(psutil.Process(up.process.pid).children()) == 4
    # With the programs that they ask something at their start.
    children = up.children()
    for name in ("Temporal server", "S3 server", "API server", "Worker"):
        assert re.search(rf"{name} +ready in \d", up.text())
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE) == 0
    assert gone(children)
    assert f"State stays in {settings.home}" in up.text()


def test_a_second_up_is_refused_and_told_who_runs_the_first(up: Sandbox, settings: Settings, tmp_path: Path) -> None:
    second = Sandbox(settings, tmp_path / "second.txt", "up")
    assert second.process.wait(PATIENCE) == 1
    assert f"A stack already runs on {settings.home}: process {up.process.pid}" in second.text()
    assert up.process.poll() is None


def test_a_killed_supervisor_takes_its_processes_along_and_the_next_one_starts(
    up: Sandbox, settings: Settings, tmp_path: Path
) -> None:
    children = up.children()
    up.process.kill()
    up.process.wait(PATIENCE)
    following = Sandbox(settings, tmp_path / "following.txt", "up")
    try:
        following.wait_for("Up in")
        assert gone(children)
    finally:
        following.process.terminate()
        assert following.process.wait(PATIENCE) == 0
