"""The requests of the API as data: what both clients send, and how they name things in URLs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from client.tasks.replies import (
    Accepted,
    ArtifactPage,
    Checked,
    Continued,
    Facts,
    RunNetwork,
    Submitted,
    Task,
    TaskPage,
)
from foundation.errors import HostNotReady
from foundation.service.files import exact, printable

DEFAULT_SERVER = "http://localhost:8122"

# How long somebody who waits for a run bears with a server that is away.
PATIENCE_SECONDS = 60.0
RECONNECT_SECONDS = 1.0
CONNECT_RETRIES = 2
TIMEOUT_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
# The server says something at least every ten seconds while a log is followed.
FOLLOW_TIMEOUT = httpx.Timeout(40.0, connect=_CONNECT_SECONDS)

# A machine that works on many files says nothing meanwhile.
_FILES_TIMEOUT = httpx.Timeout(660.0, connect=_CONNECT_SECONDS)

_BASE = "/api/v1/tasks"


@dataclass(frozen=True)
class Call:
    """One request; ``options`` are those of httpx. ``reply`` is the form that an answer in JSON must have."""

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    reply: type[BaseModel] = Facts


def trust(server: str) -> ssl.SSLContext:
    """What certificates of the server are verified with; nothing is read for a server without TLS.

    Raises HostNotReady when the environment names certificates that cannot be read.
    """
    if not server.lower().startswith("https:"):
        # Never used, and a bare context is made at once.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise HostNotReady(
            f"No certificates can be read ({error.strerror or error}); SSL_CERT_FILE and SSL_CERT_DIR, "
            "where they are set, have to name some"
        ) from error


def timeout(seconds: float) -> httpx.Timeout:
    """The most that one answer may take; a server that is not there is noticed sooner."""
    return httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))


def headers(token: str | None) -> dict[str, str]:
    """What every request carries."""
    return {"User-Agent": "taskyard"} | ({"Authorization": f"Bearer {token}"} if token else {})


def submit(manifest: str | Mapping[str, Any], *, dry_run: bool = False) -> Call:
    """Submit a manifest, as YAML or JSON text or as data; with ``dry_run`` only have it looked at."""
    options: dict[str, Any] = {"params": {"dry_run": True}} if dry_run else {}
    if isinstance(manifest, str):
        # The server tells YAML and JSON apart when no type says which it is.
        options |= {"content": manifest.encode(), "headers": {"Content-Type": "text/plain"}}
    else:
        options |= {"json": dict(manifest)}
    return Call("POST", _BASE, options, Checked if dry_run else Submitted)


def retry(task_id: str) -> Call:
    """Submit the manifest of a run again."""
    return Call("POST", f"{task_url(task_id)}/retry", reply=Submitted)


def resume(task_id: str, prompt: str, new_id: str | None, *, conversation: bool) -> Call:
    """Go on from where a run has ended."""
    body = {"prompt": prompt, "conversation": conversation} | ({"id": new_id} if new_id else {})
    return Call("POST", f"{task_url(task_id)}/resume", {"json": body}, Submitted)


def find(parameters: Mapping[str, str | int | None], labels: Mapping[str, str]) -> Call:
    """List runs; parameters that are None are left out."""
    params = {key: value for key, value in parameters.items() if value is not None}
    return Call("GET", _BASE, {"params": params | {f"label.{key}": value for key, value in labels.items()}}, TaskPage)


def get(task_id: str) -> Call:
    """One run."""
    return Call("GET", task_url(task_id), reply=Task)


def artifacts(task_id: str, *, hidden: bool = False) -> Call:
    """What a run has left so far."""
    options: dict[str, Any] = {"params": {"hidden": "true"}} if hidden else {}
    return Call("GET", f"{task_url(task_id)}/artifacts", options, ArtifactPage)


def cancel(task_id: str, reason: str | None, *, force: bool) -> Call:
    """Ask a run to end."""
    body: dict[str, Any] = {"force": force} | ({"reason": reason} if reason else {})
    return Call("DELETE", task_url(task_id), {"json": body}, Accepted)


def message(task_id: str, text: str, message_id: str | None) -> Call:
    """Send the agent a further message."""
    body = {"text": text} | ({"id": message_id} if message_id else {})
    return Call("POST", f"{task_url(task_id)}/messages", {"json": body}, Accepted)


def close_session(task_id: str) -> Call:
    """Let a ``headless: false`` session end."""
    return Call("POST", f"{task_url(task_id)}/close", reply=Accepted)


def continue_task(task_id: str, budget_usd: float | None, tokens: int | None) -> Call:
    """Add to a budget that is used up."""
    body = {"budget_usd": budget_usd, "tokens": tokens}
    given = {name: amount for name, amount in body.items() if amount is not None}
    return Call("POST", f"{task_url(task_id)}/continue", {"json": given}, Continued)


def network(task_id: str) -> Call:
    """What a run's machine may reach, and what it asked for."""
    return Call("GET", f"{task_url(task_id)}/network", reply=RunNetwork)


def change_network(task_id: str, allow: Sequence[str], remove: Sequence[str], mode: str | None) -> Call:
    """Change what a run's machine may reach."""
    body: dict[str, Any] = {"allow": list(allow), "remove": list(remove)} | ({"mode": mode} if mode else {})
    return Call("PATCH", f"{task_url(task_id)}/network", {"json": body}, RunNetwork)


def download(task_id: str, name: str) -> Call:
    """The bytes of an artifact."""
    # Parts of dots only would be taken for directions.
    parts = ["%2E" * len(part) if part in {".", ".."} else quote(part, safe="") for part in name.split("/")]
    return Call("GET", f"{task_url(task_id)}/artifacts/{'/'.join(parts)}")


def file_call(
    method: str,
    task_id: str,
    what: str,
    path: str | bytes | None,
    params: Mapping[str, Any],
    *,
    reply: type[BaseModel] = Facts,
    **options: Any,
) -> Call:
    """A request about files of a run's machine; parameters that are None are left out."""
    given = {name: value for name, value in params.items() if value is not None}
    if path is not None:
        raw = path.encode() if isinstance(path, str) else path
        coded = exact(raw)
        given |= {"path": printable(raw)} if coded is None else {"path_base64": coded}
    return Call(
        method, f"{task_url(task_id)}/files/{what}", {"params": given, "timeout": _FILES_TIMEOUT, **options}, reply
    )


def health(path: str) -> Call:
    """How the server is."""
    return Call("GET", path)


def task_url(task_id: str) -> str:
    """Path of a run, whatever characters its id has."""
    return f"{_BASE}/{quote(task_id, safe='')}"
