"""What stands in a submitted body: a manifest as YAML or JSON, or an envelope around one (contract, section 2.1)."""

from __future__ import annotations

from api.native.bodies import UNSAID_TYPES, check_charset
from foundation.documents import Document, Unreadable, text_of
from foundation.errors import InvalidManifest, UnsupportedMediaType
from foundation.faults import Fault, below
from workflows.specs.manifest import load_json, load_yaml, unreadable

_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/vnd.yaml"})
_JSON_TYPES = frozenset({"application/json", "text/json"})


def read_body(content_type: str, body: bytes) -> Document:
    """The manifest in a submitted body, not yet looked at.

    Raises InvalidManifest when it cannot be read, UnsupportedMediaType for types that hold no manifest.
    """
    media_type = check_charset(content_type)
    if media_type in _JSON_TYPES or media_type.endswith("+json"):
        document = load_json(body)
    elif media_type in _YAML_TYPES or media_type.endswith("+yaml"):
        document = load_yaml(body)
    elif media_type in UNSAID_TYPES:
        document = _of_either(body)
    else:
        raise UnsupportedMediaType(
            f"A manifest cannot be read from '{media_type[:100]}'; send it as application/yaml or application/json.",
            supported=["application/yaml", "application/json"],
        )
    return _unwrap(document)


def _of_either(body: bytes) -> Document:
    """A body of no type: JSON if it is, else YAML, in which most JSON is YAML too."""
    try:
        text = text_of(body)
    except Unreadable as error:
        raise unreadable("text", error) from None
    if not text.lstrip().startswith("{"):
        return load_yaml(text)
    try:
        return load_json(text)
    except InvalidManifest:
        return load_yaml(text)


def _unwrap(document: Document) -> Document:
    """The manifest in an envelope. Of one that has it twice, ``manifest_yaml`` is meant."""
    data = document.data
    if not isinstance(data, dict) or data.keys() & {"claude", "repository"}:
        return document
    if not data.keys() & {"manifest_yaml", "manifest"}:
        return document
    # Some clients send the one that they do not mean as null.
    data = {key: value for key, value in data.items() if key != "manifest_yaml" or value is not None}
    if data.keys() >= {"manifest_yaml", "manifest"} and data["manifest"] is None:
        del data["manifest"]
    message = "is not a field of an envelope, which has 'manifest_yaml' or 'manifest'"
    outside = [Fault(below("", key), message, "unknown") for key in data.keys() - {"manifest_yaml", "manifest"}]
    if "manifest_yaml" not in data:
        return Document(data.get("manifest"), [*outside, *(_within(fault) for fault in document.faults)])
    text = data["manifest_yaml"]
    if not isinstance(text, str):
        outside.append(Fault("manifest_yaml", "must be the manifest's YAML text", "string_type"))
        raise InvalidManifest.of([*outside, *document.faults])
    unread = Fault("manifest", "was not read: 'manifest_yaml' stands beside it", "unused")
    inner = load_yaml(text)
    own = [fault for fault in document.faults if fault.field == "manifest_yaml" and fault.validation == "duplicate"]
    return Document(inner.data, [*outside, *own, *inner.faults], [unread] if "manifest" in data else [])


def _within(fault: Fault) -> Fault:
    return Fault(fault.field.removeprefix("manifest."), fault.message, fault.validation)
