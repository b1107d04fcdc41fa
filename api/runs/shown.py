"""A run's manifest as it may be shown: without its secrets section, and without what looks like a secret elsewhere.

A manifest should name secrets and never hold them; of one that does all the same, the API does not tell them on. What
names a secret (``${TOKEN}``) is shown as it is.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from foundation.urls import REDACTED, TOKEN, without_credentials
from workflows.specs.wire import Manifest

_REFERENCE = re.compile(r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}$")
_TELLING = r"[\w.-]*(?:token|secret|passw|api[-_]?key|authorization|credential)[\w.-]*"
_TELLING_NAME = re.compile(_TELLING, re.IGNORECASE)
_TELLING_OPTION = re.compile(rf"--?{_TELLING}", re.IGNORECASE)
_ASSIGNED = re.compile(rf"({_TELLING}\s*[=:]\s*)(\S.*)", re.IGNORECASE | re.DOTALL)
# Bytes of a line that the Temporal UI shows of a run, and characters of its prompt.
_SUMMARY_BYTES = 200
_DETAILS_CHARS = 2000
# Parts of an MCP server whose values are secrets more often than not.
_VALUES = ("env", "headers")


def definition(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it may be shown, as JSON-ready data."""
    visible = manifest.model_dump(mode="json", exclude={"secrets", "version", "kind", "metadata"})
    visible["repository"]["url"] = without_credentials(manifest.repository.url)
    visible["claude"]["mcp_config"] = _without_secrets(visible["claude"]["mcp_config"])
    return visible


def summary(manifest: Manifest) -> str:
    """A run in one line for the Temporal UI."""
    text = f"{manifest.metadata.name}: {without_credentials(manifest.repository.url)}"
    return " ".join(text.split()).encode()[:_SUMMARY_BYTES].decode(errors="ignore")


def details(manifest: Manifest) -> str:
    """What the Temporal UI shows of the run's task, in Markdown. Beginnings only: history is no place for long text."""
    repository = manifest.repository
    prompt = manifest.claude.prompt.strip()
    shortened = prompt[:_DETAILS_CHARS] + (" …" if len(prompt) > _DETAILS_CHARS else "")
    quoted = "\n".join(f"> {line}" for line in shortened.splitlines())
    where = f"{without_credentials(repository.url)} `{repository.commit or repository.branch}`"
    machine = f"{manifest.vm.profile}, {manifest.vm.cpus} CPUs, {manifest.vm.memory}, {manifest.vm.network_mode}"
    return f"- Repository: {where}\n- Machine: {machine}\n- Model: {manifest.claude.model}\n\n{quoted}"


def _without_secrets(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _value(str(key), value) for key, value in part.items()}
    if isinstance(part, list):
        return [_after(word, value) for word, value in zip([None, *part], part, strict=False)]
    return _text(part) if isinstance(part, str) else part


def _value(key: str, value: Any) -> Any:
    if key in _VALUES and isinstance(value, dict):
        return {name: _reference_only(one) for name, one in value.items()}
    if isinstance(value, str) and _TELLING_NAME.fullmatch(key):
        return _reference_only(value)
    return _without_secrets(value)


def _after(word: Any, value: Any) -> Any:
    """An argument, which may be the value of the option before it."""
    if isinstance(word, str) and isinstance(value, str) and _TELLING_OPTION.fullmatch(word):
        return _reference_only(value)
    return _without_secrets(value)


def _text(text: str) -> str:
    if re.match(r"https?://", text):
        return _address(text)
    assigned = _ASSIGNED.search(text)
    if assigned:
        return f"{text[: assigned.start()]}{assigned[1]}{_reference_only(assigned[2])}"
    return TOKEN.sub(REDACTED, text)


def _address(text: str) -> str:
    """A URL without its user part and without the values of its query."""
    try:
        url = urlsplit(text)
    except ValueError:
        return REDACTED
    query = re.sub(r"=([^&]*)", lambda match: f"={_reference_only(match[1])}", url.query)
    return TOKEN.sub(REDACTED, urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2], query=query)))


def _reference_only(value: Any) -> Any:
    return TOKEN.sub(REDACTED, value) if isinstance(value, str) and _REFERENCE.match(value) else REDACTED
