"""From a request's body to a manifest that this installation can run: every way in goes through here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from api.snapshot import MAX_LABEL_TOKEN, label_token
from foundation.errors import InvalidManifest, UnsupportedMediaType
from workflows.manifest import Manifest, load_json, load_yaml, parse
from workflows.wire import NetworkMode

MAX_BODY_BYTES = 2 * 2**20

# Parts that manifests of this dialect may have, and that change nothing here.
_WITHOUT_EFFECT = {
    "parent_id": "is not kept: runs here have no parents; use a label",
    "children": "is not kept: runs here have no children; submit each as a run of its own",
    "startup_profile": "is not read: Claude Code is started as 'claude' says, with the secrets that 'secrets' names",
}

OFFERED_NETWORK_MODES = (NetworkMode.ISOLATED,)

_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/vnd.yaml"})
_JSON_TYPES = frozenset({"application/json", "text/json"})
# What clients send who name no type: curl's -d, and a plain upload.
_UNSAID_TYPES = frozenset({"", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"})


def read_body(content_type: str, body: bytes) -> Any:
    """The data of a submitted body: a manifest as YAML or JSON, or an envelope around one (contract, section 2.1).

    Raises InvalidManifest when it cannot be read, UnsupportedMediaType for types that hold no manifest.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _JSON_TYPES or media_type.endswith("+json"):
        data = load_json(body)
    elif media_type in _YAML_TYPES or media_type.endswith("+yaml"):
        data = load_yaml(body)
    elif media_type in _UNSAID_TYPES:
        data = load_json(body) if body.lstrip()[:1] == b"{" and _is_json(body) else load_yaml(body)
    else:
        raise UnsupportedMediaType(
            f"A manifest cannot be read from '{media_type}'; send it as application/yaml or application/json.",
            supported=["application/yaml", "application/json"],
        )
    return _unwrap(data)


def accept(data: Any) -> Manifest:
    """The manifest in parsed data, checked against what this installation offers.

    Raises InvalidManifest with every fault at once, those of the manifest's own rules and those of the installation.
    """
    unoffered = _unoffered(data)
    try:
        manifest = parse(_with_effect(data))
    except InvalidManifest as error:
        if not unoffered:
            raise
        raise _refusal([*error.details["errors"], *unoffered]) from error
    if unoffered:
        raise _refusal(unoffered)
    return manifest


def warnings(data: Any) -> list[dict[str, str]]:
    """What an accepted manifest says in vain, each part as ``{field, message}``."""
    return [
        {"field": field, "message": message}
        for field, message in _WITHOUT_EFFECT.items()
        if isinstance(data, dict) and data.get(field) is not None
    ]


def _with_effect(data: Any) -> Any:
    return {key: data[key] for key in data if key not in _WITHOUT_EFFECT} if isinstance(data, dict) else data


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _unwrap(data: Any) -> Any:
    if not isinstance(data, dict) or "claude" in data or "repository" in data:
        return data
    if "manifest_yaml" in data:
        text = data["manifest_yaml"]
        if not isinstance(text, str):
            raise _refusal([_fault("manifest_yaml", "must be the manifest's YAML text", "string_type")])
        return load_yaml(text)
    return data.get("manifest", data)


def _unoffered(data: Any) -> list[dict[str, str]]:
    """Faults of what is well-formed but not to be had here. Parts of another shape are left to the manifest's rules."""
    faults = []
    mode = _part(data, "vm").get("network_mode")
    if isinstance(mode, str) and mode in set(NetworkMode) - set(OFFERED_NETWORK_MODES):
        offered = ", ".join(OFFERED_NETWORK_MODES)
        faults.append(
            _fault(
                "vm.network_mode",
                f"'{mode}' is not available in this version; available: {offered}. "
                "The guest then reaches the model gateway and nothing else",
                "unavailable",
            )
        )
    for key, value in _part(_part(data, "metadata"), "labels").items():
        if isinstance(key, str) and isinstance(value, str) and len(label_token(key, value)) > MAX_LABEL_TOKEN:
            faults.append(
                _fault(
                    f"metadata.labels.{key}",
                    f"is too long; key and value together may take {MAX_LABEL_TOKEN} characters",
                    "string_too_long",
                )
            )
    return faults


def _part(data: Any, key: str) -> Mapping[Any, Any]:
    part = data.get(key) if isinstance(data, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _fault(field: str, message: str, validation: str) -> dict[str, str]:
    return {"field": field, "message": message, "validation": validation}


def _refusal(faults: list[dict[str, str]]) -> InvalidManifest:
    return InvalidManifest(
        "; ".join(f"{fault['field']}: {fault['message']}" if fault["field"] else fault["message"] for fault in faults),
        field=faults[0]["field"],
        validation=faults[0]["validation"],
        errors=faults,
    )
