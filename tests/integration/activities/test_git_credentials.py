"""Repositories that a secret of the run opens: real git, a real HTTP server that asks for it, and a real sshd."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.repository.mirror import mirror_path
from activities.repository.staging import Repositories, stage
from foundation.errors import RefNotFound, RepositoryDenied, RepositoryNotFound, SecretUnavailable, TaskyardError
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.layout import TASKS
from tests.git_servers import GitServer, SshServer, commit, git, ssh_server, sshd_program
from tests.stand_ins.fake_steps import FakeSteps
from tests.workspace_reading import extract_workspace
from workflows.runs.requests import StageRequest, StageResult
from workflows.specs.manifest import Repository, SecretReference, parse

MACHINE = "vm-0123456789abcdef"
TOKEN = "canary-token-5d31c0ffee"
REFERENCE = SecretReference(name="GIT_TOKEN", source="env", key="CI_GIT_TOKEN")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "served") as running:
        running.private["private"] = {f"x-access-token:{TOKEN}", f"deploy:{TOKEN}"}
        yield running


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    config = tmp_path / "gitconfig"
    config.touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    for name in [name for name in os.environ if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}]:
        monkeypatch.delenv(name)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def private(server: GitServer) -> Path:
    path = server.root / "private"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    commit(path, "README.md", "one\n")
    return path


def staged(
    settings: Settings, url: str, reference: SecretReference | None = REFERENCE, machine: str = MACHINE, **more: str
) -> StageResult:
    repository = Repository(url=url, branch="main", credentials=reference and reference.name, **more)
    request = StageRequest(task_id="t", machine_id=machine, repository=repository, disk="64M", credentials=reference)
    return stage(settings, request, lambda _: None)


def refused(kind: type[TaskyardError], settings: Settings, url: str, *words: str, **more: str) -> None:
    with pytest.raises(kind) as caught:
        staged(settings, url, **more)
    assert type(caught.value) is kind
    for word in words:
        assert word in caught.value.message
    assert TOKEN not in f"{caught.value.message} {caught.value.details}"


def holding(word: str, *places: Path) -> list[str]:
    found = subprocess.run(["grep", "-rlaF", "--", word, *places], capture_output=True, text=True, check=False)
    return found.stdout.splitlines()


@pytest.mark.parametrize("value", [TOKEN, f"deploy:{TOKEN}", f"{TOKEN}\n"])
def test_a_token_opens_a_repository_and_is_left_nowhere(
    settings: Settings, server: GitServer, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CI_GIT_TOKEN", value)
    result = staged(settings, server.url("private"))

    assert result.base_commit == git(private, "rev-parse", "main")
    assert server.credentials("/private") == {
        value.strip() if ":" in value else f"x-access-token:{TOKEN}",
    }
    assert holding(TOKEN, settings.home, Path("/dev/shm")) == []
    extract_workspace(Path(result.workspace_image), tmp_path / "out", dirty=False)
    assert (tmp_path / "out/README.md").read_text() == "one\n"
    assert holding(TOKEN, tmp_path / "out") == []
    assert git(tmp_path / "out", "remote", "get-url", "origin") == server.url("private")


def test_while_git_runs_no_process_shows_the_token(settings: Settings, server: GitServer, private: Path) -> None:
    server.slow = threading.Event()
    thread = threading.Thread(target=staged, args=(settings, server.url("private")))
    thread.start()
    seen: set[str] = set()
    mine = psutil.Process()
    deadline = time.monotonic() + 60
    while not server.fetches:
        assert time.monotonic() < deadline
        for process in mine.children(recursive=True):
            try:
                seen.add(process.name())
                shown = " ".join([*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items())])
            except psutil.Error:
                continue
            # The worker has it in its own environment, which this test reads it from; no program of its does.
            assert TOKEN not in shown
        time.sleep(0.001)
    server.slow.set()
    thread.join(60)
    assert "git" in seen
    assert private.exists()


def test_nobody_is_served_from_what_only_a_secret_could_fetch(
    settings: Settings, server: GitServer, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_secret = staged(settings, server.url("private"))
    commit_id = with_secret.base_commit

    refused(RepositoryDenied, settings, server.url("private"), "wants credentials", machine="vm-2", reference=None)

    # Also where the server lets everybody in, but not to everything: what it once gave the secret stays with that.
    git(private, "checkout", "--quiet", "-b", "hidden")
    hidden = commit(private, "secret.txt", "for some\n")
    staged(settings, server.url("private"), machine="vm-3", commit=hidden)
    git(private, "checkout", "--quiet", "main")
    git(private, "branch", "-D", "hidden")
    git(private, "reflog", "expire", "--expire=now", "--all")
    git(private, "gc", "--quiet", "--prune=now")
    del server.private["private"]
    assert staged(settings, server.url("private"), machine="vm-4", commit=hidden).base_commit == hidden
    for other in (None, SecretReference(name="GIT_TOKEN", source="env", key="OTHER_TOKEN")):
        monkeypatch.setenv("OTHER_TOKEN", "another")
        refused(RefNotFound, settings, server.url("private"), hidden, machine="vm-5", reference=other, commit=hidden)
        assert staged(settings, server.url("private"), other, "vm-6").base_commit == commit_id
    assert len([path for path in settings.mirrors.iterdir() if path.is_dir()]) == 3
    assert with_secret.mirror == mirror_path(settings, server.url("private"), "env:CI_GIT_TOKEN").name


def test_the_hosts_own_credentials_are_not_used_beside_a_secret(
    settings: Settings, server: GitServer, private: Path
) -> None:
    helper = '[credential]\n\thelper = "!f() { echo username=host; echo password=hosts; }; f"\n'
    header = '[http]\n\textraHeader = "Authorization: Basic aG9zdDpob3N0cw=="\n'
    server.private["private"] = {"host:hosts"}
    for config in (helper, header):
        Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text(config)
        assert staged(settings, server.url("private"), None).base_commit
        refused(
            RepositoryDenied,
            settings,
            server.url("private"),
            "refuses the credentials of secret GIT_TOKEN",
            machine="b",
        )
    assert private.exists()


@pytest.mark.parametrize("name", ["private", "moved"])
def test_a_redirect_to_another_server_does_not_get_the_secret(
    settings: Settings, server: GitServer, private: Path, tmp_path: Path, name: str
) -> None:
    """Also when it asks for one, and when the first server has taken the secret before."""
    with GitServer(tmp_path / "elsewhere") as other:
        other.private["private"] = {f"x-access-token:{TOKEN}"}
        git(other.root, "clone", "--quiet", "--bare", str(private), "private")
        if name == "private":
            git(private.parent, "clone", "--quiet", "--bare", str(private), "moved")
        server.private["moved"] = server.private["private"]
        server.moved[name] = other.url("private")

        refused(RepositoryDenied, settings, server.url(name))

        assert other.asked
        assert other.shown == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty"),
        ("two words", "neither a token"),
        (":x", "neither a token"),
        ("x:", "neither a token"),
        ("a\nhost=example.org", "neither a token"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx", "repository.url is no SSH URL"),
    ],
)
def test_secrets_that_are_no_credentials(
    settings: Settings, server: GitServer, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("CI_GIT_TOKEN", value)
    refused(SecretUnavailable, settings, server.url("private"), "GIT_TOKEN", words)
    assert server.asked == []


def test_what_does_not_exist_or_is_hidden_is_told_as_both(settings: Settings, server: GitServer) -> None:
    refused(
        RepositoryNotFound, settings, server.url("absent"), "or the credentials of secret GIT_TOKEN may not read it"
    )


async def test_a_run_leaves_the_secret_in_no_history_log_or_bucket(
    services: Settings,
    bucket: Bucket,
    temporal_client: Client,
    settings: Settings,
    server: GitServer,
    private: Path,  # noqa: ARG001 -- what is staged
) -> None:
    """Real staging in a real workflow; also when the server refuses, and repeats what it was shown."""
    settings = services.model_copy(update={"home": settings.home})
    fake = FakeSteps(queue=f"test-{uuid.uuid4().hex[:8]}")
    step = Repositories(settings, bucket).stage_repository
    fake.instead["stage"] = lambda request: asyncio.to_thread(ActivityEnvironment().run, step, request)
    fake.agent_over.set()
    tasks = []
    async with fake.worker(temporal_client):
        for name in ("private", "repeating"):
            server.beside = lambda _m, path, _h, _b: (
                (403, {"Content-Type": "text/plain"}, f"bad token {TOKEN}\n".encode()) if "repeating" in path else None
            )
            task = f"canary-{uuid.uuid4().hex[:8]}"
            tasks.append(task)
            manifest = parse(
                {
                    "metadata": {"name": "n"},
                    "repository": {"url": server.url(name), "branch": "main", "credentials": "GIT_TOKEN"},
                    "claude": {"prompt": "p"},
                    "vm": {"disk": "4G"},
                    "secrets": [REFERENCE.model_dump(exclude_none=True)],
                }
            )
            run = await fake.start(temporal_client, manifest, task)
            status = await run.result()
            assert (status.cause is None) == (name == "private")
            assert TOKEN not in (await run.fetch_history()).to_json()
            assert TOKEN not in status.model_dump_json()
    objects = [info.key for task in tasks for info in bucket.list(TASKS.place(task).prefix)]
    assert objects
    for key in objects:
        assert TOKEN.encode() not in (bucket.get(key) or b"")
    assert holding(TOKEN, settings.home) == []


# --- ssh


@pytest.fixture
def ssh(tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    if sshd_program() is None:
        pytest.skip("no sshd on this host, and no package of it to be had")
    with ssh_server(tmp_path / "ssh", private.parent) as running:
        monkeypatch.setenv("CI_GIT_TOKEN", running.key)
        yield running


def test_a_key_opens_a_server_that_is_known_by_its_own(
    settings: Settings, ssh: SshServer, private: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for machine, key in {"vm-1": ssh.key, "vm-2": ssh.key.strip(), "vm-3": ssh.key.replace("\n", "\r\n")}.items():
        monkeypatch.setenv("CI_GIT_TOKEN", key)
        result = staged(settings, ssh.url("private"), machine=machine, known_hosts=ssh.known_hosts)
        assert result.base_commit == git(private, "rev-parse", "main")

    secret = ssh.key.splitlines()[2]
    assert holding(secret, settings.home, Path("/dev/shm")) == []
    extract_workspace(Path(result.workspace_image), tmp_path / "out", dirty=False)
    assert holding(secret, tmp_path / "out") == []


def test_a_server_with_another_key_or_none_that_is_known_is_not_trusted(
    settings: Settings, ssh: SshServer, tmp_path: Path
) -> None:
    pins = f"[127.0.0.1]:{ssh.port} {_public_key(tmp_path / 'other')}"
    refused(RepositoryDenied, settings, ssh.url("private"), "none of repository.known_hosts", known_hosts=pins)
    refused(RepositoryDenied, settings, ssh.url("private"), "not known on this host", "repository.known_hosts")


def test_keys_that_open_nothing(
    settings: Settings, ssh: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _public_key(tmp_path / "stranger")
    monkeypatch.setenv("CI_GIT_TOKEN", (tmp_path / "stranger").read_text())
    refused(
        RepositoryDenied, settings, ssh.url("private"), "refuses the credentials of secret", known_hosts=ssh.known_hosts
    )
    _public_key(tmp_path / "locked", "-N", "a passphrase")
    monkeypatch.setenv("CI_GIT_TOKEN", (tmp_path / "locked").read_text())
    refused(SecretUnavailable, settings, ssh.url("private"), "has a passphrase".replace("has", "with"))
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    refused(SecretUnavailable, settings, ssh.url("private"), "no SSH private key")


def _public_key(path: Path, *more: str) -> str:
    options = more or ("-N", "")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", *options, "-C", "", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])
