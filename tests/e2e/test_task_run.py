"""Task runs from submission to the last artifact, in real machines with the real Claude Code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from foundation.errors import TaskyardError
from machines.host import MachineHost
from tests.e2e.conftest import CANARY, Site, processes_of, until
from tests.git_servers import GitServer, commit, git
from tests.stand_ins.lfs_server import LfsServer

PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(600)


def guest(command: str, *words: str) -> str:
    """Run words in the guest by the ssh command that users are shown; gives what it prints."""
    done = subprocess.run(
        [*shlex.split(command), shlex.join(words)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


def test_a_crashed_agent_fails_the_run_and_its_machine_is_kept_to_be_entered(site: Site, tmp_path: Path) -> None:
    task = site.run("exit code", lifecycle={"failure_action": "preserve", "artifact_patterns": ["*.txt"]})
    assert (task.state, task.cause, task.exit_code) == ("failed_preserved", "agent_exit", 137)
    assert "137" in (task.error or "")
    artifacts = {artifact.name for artifact in site.client.artifacts(task.id)}
    assert artifacts == {f"{task.id}.patch", f"{task.id}-untracked.txt", "metadata.json", "draft.txt"}
    assert site.artifact(task.id, "draft.txt", tmp_path).read_text() == "unfinished\n"
    metadata = json.loads(site.artifact(task.id, "metadata.json", tmp_path).read_text())
    assert metadata["exit_code"] == 137
    # The agent speaks to the model without the proxy, and asks it for nothing else.
    assert (metadata["network"]["allowed"], metadata["network"]["blocked"]) == (0, 0)

    enter = task.ssh_command
    assert enter is not None
    assert guest(enter, "cat", "/workspace/draft.txt") == "unfinished\n"

    # The manifest's shape is what the guest sees.
    assert guest(enter, "nproc").strip() == "2"
    memory_kib = int(re.search(r"MemTotal:\s+(\d+)", guest(enter, "cat", "/proc/meminfo"))[1])
    assert 0.85 * 2**20 < memory_kib <= 2**20
    for mount in ("/", "/workspace"):
        size = int(guest(enter, "df", "--output=size", "-B1", mount).split()[-1])
        assert 0.85 * 6 * 2**30 < size <= 6 * 2**30

    # Nothing but the gateway can be reached: not what lies beyond the host (its own address stands for that, where a
    # server listens), not the host's loopback with Temporal, the bucket and the API.
    settings = site.settings
    outside = next(
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family is socket.AF_INET and not address.address.startswith("127.")
    )
    listener = socket.create_server((outside, 0))
    closed = [f"{outside}:{listener.getsockname()[1]}", "10.0.2.3:53", "10.0.2.2:22"] + [
        f"10.0.2.2:{port}" for port in (settings.temporal_port, settings.s3_port, settings.api_port)
    ]
    probe = (
        # Without the guest's own redirect, which takes every connection, to lead it to the proxy.
        "sudo nft flush ruleset; for target in " + " ".join(["10.0.2.100:80", *closed]) + "; do { "
        'if timeout 10 bash -c "exec 3<>/dev/tcp/${target%:*}/${target##*:}" 2>/dev/null; '
        'then echo "$target open"; else echo "$target closed"; fi; } & done; wait'
    )
    answers = dict(line.split() for line in guest(enter, "bash", "-c", probe).splitlines())
    listener.close()
    assert answers == {"10.0.2.100:80": "open"} | dict.fromkeys(closed, "closed")
    status = guest(
        enter,
        "curl",
        "-s",
        "-m",
        "20",
        "http://10.0.2.100/v1/messages",
        "-d",
        "{}",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    )
    assert status == "401"

    assert task.vm_name is not None
    assert site.client.exec(task.id, ["cat", "draft.txt"]).stdout == b"unfinished\n"
    machine = MachineHost(settings).record(task.vm_name)
    assert machine.pid is not None
    os.kill(machine.pid, signal.SIGKILL)

    def told() -> str:
        with pytest.raises(TaskyardError) as refused:
            site.client.exec(task.id, ["true"])
        return refused.value.code

    # The guest does not answer any more, and then its process is seen to have ended.
    until(lambda: told() == "machine_lost", 30)

    environment = {**os.environ, "TASKYARD_HOME": str(settings.home)}
    destroy = [PROGRAMS / "sandbox", "machine", "destroy", task.vm_name]
    subprocess.run(destroy, check=True, env=environment, timeout=60)
    assert not [words for words in processes_of(settings.home) if task.vm_name in words]
    assert not (settings.machines / task.vm_name).exists()


def begin_error(site: Site) -> dict[str, str]:
    return {"error result": site.submit("error result")}


@pytest.mark.ahead(begin=begin_error)
def test_an_error_result_fails_the_run(site: Site) -> None:
    task = site.client.wait(site.begun.pop("error result"))
    assert (task.state, task.cause, task.exit_code) == ("failed", "agent_error", 1)
    assert {artifact.name for artifact in site.client.artifacts(task.id)} >= {f"{task.id}.patch", "metadata.json"}


@pytest.mark.usefixtures("begun_ended")
def test_a_killed_worker_loses_nothing_and_starts_nothing_twice(site: Site, tmp_path: Path) -> None:
    """Kill -9 of the worker while Claude Code runs; with a secret in the run, which nothing may hold afterwards."""
    secrets = [{"name": "CANARY", "source": "env", "key": "CANARY"}]
    task_id = site.submit("slow", secrets=secrets)

    def steps_logged() -> int:
        return sum("slow-step-" in (line.data or "") for line in site.client.logs(task_id))

    until(lambda: site.client.get(task_id).state == "running", 300)
    until(lambda: steps_logged() >= 3, 300)
    worker = site.stack.pids()["worker"]
    os.kill(worker, signal.SIGKILL)
    until(lambda: site.stack.pids().get("worker") not in {None, worker})
    task = site.client.wait(task_id, poll_seconds=0.5)
    assert (task.state, task.exit_code) == ("completed", 0)

    lines = [line for line in site.client.logs(task_id) if line.id is not None]
    assert [line.id for line in lines] == list(range(1, len(lines) + 1))
    events = [json.loads(line.data) for line in lines if line.stream == "stdout" and line.data]
    assert len({event["session_id"] for event in events if "session_id" in event}) == 1
    calls = [
        block["input"]["command"]
        for event in events
        if event["type"] == "assistant"
        for block in event["message"]["content"]
        if block["type"] == "tool_use"
    ]
    steps = [re.search(r"slow-step-(\d+)", call) for call in calls]
    assert [int(step[1]) for step in steps if step] == list(range(1, 13))
    assert [event["type"] for event in events].count("result") == 1
    patch = site.artifact(task_id, f"{task_id}.patch", tmp_path).read_text()
    assert [line for line in patch.splitlines() if line.startswith("+slow-step-")] == [
        f"+slow-step-{number}" for number in range(1, 13)
    ]


def test_a_secret_reaches_the_agent_and_nothing_else(site: Site, tmp_path: Path) -> None:
    secrets = [{"name": "CANARY", "source": "env", "key": "CANARY"}]
    task_id = site.submit("canary", secrets=secrets, lifecycle={"artifact_patterns": ["out/*"]})
    seen_in_processes: set[str] = set()

    def ended() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if CANARY in words:
                seen_in_processes.add(words)
        return site.client.get(task_id).terminal

    until(ended, 300)
    task = site.client.get(task_id)
    assert (task.state, task.error) == ("completed", None)
    assert seen_in_processes == set()

    log = "".join(line.data or "" for line in site.client.logs(task_id))
    assert "the canary is [redacted:CANARY], again [redacted:CANARY]" in log
    assert site.artifact(task_id, "out/canary.txt", tmp_path).read_text() == "token=[redacted:CANARY]\n"

    temporal = [PROGRAMS / "temporal", "--address", site.settings.temporal_target, "workflow", "show", "-o", "json"]
    history = subprocess.run([*temporal, "-w", f"task-{task_id}"], capture_output=True, check=True, text=True).stdout
    assert len(json.loads(history)["events"]) <= 80
    assert len(history) <= 150_000
    assert "the canary is" not in history
    holders = subprocess.run(
        ["grep", "--recursive", "--text", "--files-with-matches", CANARY, str(site.settings.home)],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    assert holders == []


@pytest.mark.parametrize(
    ("repository", "sentence", "seconds"),
    [
        ({"branch": "mian"}, "main", 20),
        ({"url": "{server}/absent.git"}, "absent.git", 20),
        ({"commit": "0123456789abcdef0123456789abcdef01234567"}, "0123456789abcdef", 20),
        # It is asked again, as it may only be away.
        ({"url": "http://127.0.0.1:9/none.git"}, "127.0.0.1", 60),
    ],
)
def test_a_repository_that_cannot_be_had_ends_the_run_in_time(site, repository, sentence, seconds) -> None:
    server = site.repository.rsplit("/", 1)[0]
    task = site.run("hello", repository={key: value.format(server=server) for key, value in repository.items()})
    assert (task.state, task.cause) == ("failed", "repository")
    assert sentence in (task.error or "")
    assert (task.state_changed_at - task.created_at).total_seconds() <= seconds
    assert site.client.artifacts(task.id) == []


def test_a_message_reaches_the_running_agent_and_cancel_ends_an_open_session(site: Site) -> None:
    task_id = site.submit("wait for message", claude={"headless": False})

    def logged(text: str) -> bool:
        return any(text in (line.data or "") for line in site.client.logs(task_id))

    until(lambda: logged("Waiting for a message, round 1."), 300)
    site.client.message(task_id, "That is all: finish now.")
    until(lambda: logged("Finished as the message asked."), 300)
    assert site.client.get(task_id).state == "running"
    site.client.cancel(task_id, "seen enough")
    task = site.client.wait(task_id, poll_seconds=0.5)
    assert (task.state, task.error) == ("cancelled", "Cancelled: seen enough")
    assert "metadata.json" in {artifact.name for artifact in site.client.artifacts(task_id)}


def test_after_its_end_no_run_has_a_machine(site: Site) -> None:
    def left() -> set[str]:
        here = {path.name for path in site.settings.machines.glob("vm-*")}
        return here - {task.vm_name for task in site.client.find(limit=100).tasks if not task.terminal}

    until(lambda: not left())
    machines = {path.name for path in site.settings.machines.glob("vm-*")}
    running = [words for words in processes_of(site.settings.home) if "qemu-system" in words]
    assert [words for words in running if not any(machine in words for machine in machines)] == []


def test_a_private_repository_is_worked_on_with_its_submodule_and_lfs(site: Site, tmp_path: Path) -> None:
    with GitServer(tmp_path / "served") as server:
        lfs = LfsServer(server)
        for name in ("below", "top"):
            path = server.root / name
            path.mkdir()
            git(path, "init", "--quiet", "--initial-branch=main")
            (path / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
            (path / "kept.bin").write_bytes(lfs.add(bytes(range(256)) * 400))
            (path / "changed.bin").write_bytes(lfs.add(b"as it was"))
            commit(path, "text.txt", "one\n")
            server.private[name] = {f"x-access-token:{CANARY}"}
        link = f"160000,{git(server.root / 'below', 'rev-parse', 'HEAD')},sub"
        (path / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = ../below\n')
        git(path, "add", ".gitmodules")
        git(path, "update-index", "--add", "--cacheinfo", link)
        git(path, "commit", "--quiet", "-m", "link")
        repository = {"url": server.url("top"), "submodules": True, "lfs": True, "credentials": "OPENS_REPOSITORY"}
        repository["push"] = {}
        secrets = [{"name": "OPENS_REPOSITORY", "source": "env", "key": "CANARY"}]
        task = site.run("submodules", repository=repository, secrets=secrets)
    assert (task.state, task.error) == ("completed", None)
    # Nothing is sent to LFS servers: what was looked at on the host is told, and costs the run nothing.
    assert task.pushed is not None
    assert "changed.bin is kept by git LFS" in f"{task.pushed.error}"

    log = "".join(line.data or "" for line in site.client.logs(task.id))
    for told in ("status: []", "sizes: 102400 102400", "for git: [0]", "left: [ M sub"):
        assert told in log
    patch = site.artifact(task.id, f"{task.id}.patch", tmp_path).read_text()
    assert patch.count("+changed by the agent") == 2
    assert "+++ b/sub/text.txt" in patch
    assert "kept.bin" not in patch
    held = ["grep", "--recursive", "--text", "--files-with-matches", CANARY, str(site.settings.home)]
    assert subprocess.run(held, capture_output=True, text=True, check=False).stdout.splitlines() == []
