"""From what was read to a manifest that this installation can run: every way in goes through here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anyio import CapacityLimiter, to_thread

from api.temporal.keywords import MAX_LABEL_TOKEN, MAX_LABELS_BYTES, label_token
from foundation.documents import Document
from foundation.faults import Fault, as_details, below
from foundation.units import parse_duration
from foundation.urls import has_credentials
from workflows.specs import mcp
from workflows.specs.faults import FREE_TEXTS
from workflows.specs.manifest import Manifest, parse
from workflows.specs.wire import NetworkMode

# Reading takes processor time: a few bodies at once, beside everything else that the server does.
_READERS = 2

# Parts that a manifest may have, and that change nothing here.
_WITHOUT_EFFECT = {
    "parent_id": "is not kept: runs here have no parents; use a label",
    "children": "is not kept: runs here have no children; submit each as a run of its own",
    "startup_profile": "is not read: Claude Code is started as 'claude' says, with the secrets that 'secrets' names",
}


@dataclass(frozen=True)
class Submission:
    """An accepted manifest, and warnings of fields in it that have no effect."""

    manifest: Manifest
    warnings: list[dict[str, str]]


class Submissions:
    """Reads what is submitted, in threads of which there are few, so that no body holds up other requests."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_READERS)

    async def take(self, read: Callable[[], Document]) -> Submission:
        """The manifest in what ``read`` gives. Raises InvalidManifest with every fault, and what ``read`` raises."""
        return await to_thread.run_sync(lambda: accept(read()), limiter=self._limiter)


def accept(document: Document) -> Submission:
    """The manifest in what was read, checked against what this installation offers.

    Raises InvalidManifest with every fault at once: of the text, of the manifest's own rules, of the installation.
    """
    data = document.data
    manifest = parse(_with_effect(data), [*document.faults, *_of_labels(data)])
    return Submission(manifest, as_details([*document.remarks, *_in_vain(data, manifest)]))


def _with_effect(data: Any) -> Any:
    return {key: data[key] for key in data if key not in _WITHOUT_EFFECT} if isinstance(data, dict) else data


def _of_labels(data: Any) -> Iterator[Fault]:
    """Labels that Temporal's visibility store would not take. Other shapes are left to the manifest's rules."""
    labels = _part(_part(data, "metadata"), "labels")
    texts = {key: value for key, value in labels.items() if isinstance(key, str) and isinstance(value, str)}
    tokens = {key: label_token(key, value) for key, value in texts.items()}
    for key, token in tokens.items():
        if len(token) > MAX_LABEL_TOKEN:
            message = f"is too long; key and value together may take {MAX_LABEL_TOKEN} characters"
            yield Fault(below("metadata.labels", key), message, "string_too_long")
    if (size := len(json.dumps(list(tokens.values())))) > MAX_LABELS_BYTES:
        message = f"take {size} bytes together, as a JSON list of key=value; {MAX_LABELS_BYTES} are the most"
        yield Fault("metadata.labels", message, "too_large")


def _in_vain(data: Mapping[str, Any], manifest: Manifest) -> Iterator[Fault]:
    """What an accepted manifest says that will not do what it seems to."""
    for field, message in _WITHOUT_EFFECT.items():
        if data.get(field) is not None:
            yield Fault(field, message, "unused")
    for field, text in zip(FREE_TEXTS, (manifest.claude.prompt, manifest.metadata.name), strict=True):
        if has_credentials(text):
            message = "holds credentials, which are kept with the run; name a secret of 'secrets' instead"
            yield Fault(field, message, "credentials")
    vm, lifecycle, config = manifest.vm, manifest.lifecycle, manifest.claude.mcp_config
    if vm.allowed_hosts and vm.network_mode is not NetworkMode.OUTBOUND:
        message = f"opens nothing: network_mode is '{vm.network_mode}', and only 'outbound' reads it"
        yield Fault("vm.allowed_hosts", message, "unused")
    hang_timeout = _part(data, "lifecycle").get("hang_timeout")
    if hang_timeout and parse_duration(lifecycle.hang_timeout) > parse_duration(lifecycle.timeout):
        yield Fault("lifecycle.hang_timeout", "never passes: lifecycle.timeout is shorter", "unused")
    limits = (manifest.claude.max_budget_usd, manifest.claude.max_tokens_total)
    if lifecycle.budget_action == "pause" and limits == (None, None):
        message = "never happens: neither claude.max_budget_usd nor claude.max_tokens_total sets a limit"
        yield Fault("lifecycle.budget_action", message, "unused")
    if config is not None:
        names = {secret.name for secret in manifest.guest_secrets()}
        yield from mcp.warnings(config, names, "claude.mcp_config", vm.network())


def _part(data: Any, key: str) -> Mapping[Any, Any]:
    part = data.get(key) if isinstance(data, Mapping) else None
    return part if isinstance(part, Mapping) else {}
