"""The parts of a stack on one host: embedded Temporal and S3 servers, Taskyard's own server and worker."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from cli.stack.supervisor import Part
from foundation.child_environment import child_environment
from foundation.errors import HostNotReady, TaskyardError
from foundation.settings import Settings

# The embedded S3 server listens on its own port and on the nine after it, all on loopback.
S3_PORT_COUNT = 10

_PROOF_KEY = "stack/proof"


def temporal_part(settings: Settings) -> Part:
    """The Temporal dev server on an SQLite file that survives a crash at any moment."""
    from cli.stack.search_attributes import CONFIGURATION, wanted_attributes

    directory = settings.home / "temporal"
    dynamic = yaml.safe_load((CONFIGURATION / "dynamic-config.yaml").read_text())
    command = [
        _tool("temporal"), "server", "start-dev",
        "--ip", "127.0.0.1", "--port", str(settings.temporal_port), "--ui-port", str(settings.temporal_ui_port),
        "--namespace", settings.temporal_namespace,
        "--db-filename", str(directory / "temporal.db"),
        # Twice as fast as the default journal, and a commit is on disk before it is answered.
        "--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2",
        # In KiB: the visibility store's many indices do not fit into the default of 2 MiB.
        "--sqlite-pragma", "cache_size=-65536",
        "--ui-disable-news-fetch", "--log-level", "warn", "--color", "never",
        *(word for key, value in dynamic.items() for word in ("--dynamic-config-value", f"{key}={json.dumps(value)}")),
        # From the first moment on: what is registered later is seen by a running server after some seconds only.
        *(word for name, kind in wanted_attributes().items() for word in ("--search-attribute", f"{name}={kind}")),
    ]  # fmt: skip

    def probe(_pid: int, _started_at: float) -> str | None:
        if not _accepts(settings.temporal_port):
            return "its port to open"
        from cli.stack.search_attributes import register_attributes

        try:
            asyncio.run(asyncio.wait_for(register_attributes(settings), 5))
        except HostNotReady:
            raise
        except Exception as error:  # noqa: BLE001 -- while it starts, it fails in many ways
            return f"its answer ({error})"
        return None if _accepts(settings.temporal_ui_port) else "its web UI"

    return Part(
        name="temporal",
        label="Temporal server",
        command=command,
        environment=child_environment(),
        probe=probe,
        address=f"{settings.temporal_target}, web UI http://127.0.0.1:{settings.temporal_ui_port}",
        prepare=lambda: directory.mkdir(parents=True, exist_ok=True),
    )


def bucket_part(settings: Settings) -> Part:
    """The S3 server, with keys made at the first start."""
    directory = settings.home / "bucket"
    base = settings.s3_port
    ports = (
        "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
        "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
    )  # fmt: skip
    command = [
        _tool("weed"), "-logtostderr=true", "mini", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}={base + offset}" for offset, name in enumerate(ports)),
        "-admin.ui=false", "-webdav=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-volume.preStopSeconds=0", f"-s3.config={directory / 's3.json'}",
        f"-filer.localSocket={settings.sockets / 'filer.sock'}", f"-s3.localSocket={settings.sockets / 's3.sock'}",
    ]  # fmt: skip

    def prepare() -> None:
        (directory / "data").mkdir(parents=True, exist_ok=True)
        settings.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        access_key, secret_key = settings.s3_credentials()
        identity = {
            "name": "taskyard",
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        descriptor = os.open(directory / "s3.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"identities": [identity]}, file)

    def probe(_pid: int, _started_at: float) -> str | None:
        if _http_status(settings.s3_port, "/") not in {200, 403}:
            return "its answer"
        from storage.bucket import Bucket

        try:
            bucket = Bucket(settings)
            bucket.ensure()
            # It answers before its volumes are there: only what was written and read back shows that it works.
            bucket.put(_PROOF_KEY, b"ready")
            kept = bucket.get(_PROOF_KEY)
            bucket.delete([_PROOF_KEY])
        except TaskyardError as error:
            return f"its bucket ({error})"
        return None if kept == b"ready" else "its bucket to keep what is written"

    def cleanup() -> None:
        # The server leaves its sockets behind, most of them at a place that it does not let us choose.
        for name in ("filer.sock", "s3.sock"):
            (settings.sockets / name).unlink(missing_ok=True)
        for offset in range(1, S3_PORT_COUNT, 2):
            for socket_path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-grpc-{base + offset}.sock"):
                socket_path.unlink(missing_ok=True)

    return Part(
        name="bucket",
        label="S3 server",
        command=command,
        environment=child_environment(),
        probe=probe,
        address=settings.s3_target,
        prepare=prepare,
        cleanup=cleanup,
        directory=directory,
    )


def server_part(settings: Settings) -> Part:
    """Taskyard's API server."""
    host = "127.0.0.1" if settings.api_host in {"0.0.0.0", "::", ""} else settings.api_host  # noqa: S104 -- asked, not bound

    def probe(_pid: int, _started_at: float) -> str | None:
        for port, what in ((settings.api_port, "its answer"), (settings.ws_port, "its WebSocket port")):
            if _http_status(port, "/health", host) != http.HTTPStatus.OK:
                return what
        return None

    return Part(
        name="server",
        label="API server",
        command=_sandbox("server"),
        environment=process_environment(settings),
        probe=probe,
        address=f"http://{host}:{settings.api_port}, events ws://{host}:{settings.ws_port}",
    )


def worker_part(settings: Settings) -> Part:
    """Taskyard's worker. It is ready when Temporal has seen it poll."""

    def probe(_pid: int, started_at: float) -> str | None:
        try:
            polled_at = asyncio.run(asyncio.wait_for(_last_poll(settings), 5))
        except Exception as error:  # noqa: BLE001 -- Temporal may be on its way back
            return f"Temporal ({error})"
        return None if polled_at >= started_at else "its first poll"

    return Part(
        name="worker",
        label="Worker",
        command=_sandbox("worker"),
        environment=process_environment(settings),
        probe=probe,
        address=f"task queue {settings.task_queue}",
        # It finishes the short steps in hand; the long ones are followed further by the next worker.
        grace_seconds=20.0,
    )


PARTS: dict[str, Callable[[Settings], Part]] = {
    "temporal": temporal_part,
    "bucket": bucket_part,
    "server": server_part,
    "worker": worker_part,
}


def process_environment(settings: Settings) -> dict[str, str]:
    """The environment in which another process of Taskyard reads the same settings."""
    environment = dict(os.environ)
    for name in type(settings).model_fields:
        variable = f"TASKYARD_{name.upper()}"
        if name not in settings.model_fields_set:
            continue
        value = settings.model_dump(mode="json", include={name})[name]
        secret = getattr(settings, name)
        if value is None:
            environment.pop(variable, None)
        elif hasattr(secret, "get_secret_value"):
            environment[variable] = secret.get_secret_value()
        else:
            environment[variable] = value if isinstance(value, str) else json.dumps(value)
    environment["TASKYARD_HOME"] = str(settings.home.absolute())
    return environment


def needed_ports(settings: Settings, part: str) -> list[tuple[int, str]]:
    """Ports that the part listens on, each with the setting that moves it."""
    return {
        "temporal": [
            (settings.temporal_port, "TASKYARD_TEMPORAL_PORT"),
            (settings.temporal_ui_port, "TASKYARD_TEMPORAL_UI_PORT"),
        ],
        "bucket": [(settings.s3_port + offset, "TASKYARD_S3_PORT") for offset in range(S3_PORT_COUNT)],
        "server": [(settings.api_port, "TASKYARD_API_PORT"), (settings.ws_port, "TASKYARD_WS_PORT")],
    }.get(part, [])


def port_conflict(settings: Settings, part: str) -> str | None:
    """A sentence on the first of the part's ports that another process uses; None when all are free."""
    for port, setting in needed_ports(settings, part):
        address = settings.api_host if part == "server" else "127.0.0.1"
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                span = f" (it takes {S3_PORT_COUNT} ports from there on)" if part == "bucket" else ""
                return (
                    f"Port {port} for the {PARTS[part](settings).label} cannot be used: {error.strerror}"
                    f"{_user_of(port)}. End that process, or set {setting} to another port{span}."
                )
    return None


def _user_of(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            try:
                words = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                return f" by process {connection.pid}"
            return f" by process {connection.pid} ({words[:80]})"
    return ""


def _tool(name: str) -> str:
    """Path of a server that came as a wheel: beside this Python, or in the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise HostNotReady(f"The program '{name}' is not installed; run 'make setup' in the checkout.")
    return found


def _sandbox(command: str) -> list[str]:
    # -P: a directory named like one of ours, where the user happens to be, must not be imported.
    return [sys.executable, "-P", "-m", "cli", command]


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _http_status(port: int, path: str, host: str = "127.0.0.1") -> int | None:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


async def _last_poll(settings: Settings) -> float:
    """When a workflow worker last polled the task queue, in unix seconds; 0 for never."""
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

    from foundation.engine import connect_engine

    client = await connect_engine(settings)
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=settings.temporal_namespace,
            task_queue=TaskQueue(name=settings.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )
    return max((poller.last_access_time.ToNanoseconds() / 1e9 for poller in answer.pollers), default=0.0)
