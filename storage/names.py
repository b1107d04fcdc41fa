"""Names of artifacts: a workspace path as text that a person can read, a URL can carry, and only this path has.

What text cannot show (bytes that are no UTF-8, control and invisible characters, blanks at an end, a backslash, accents
in another form than the composed one) is written as ``%XX``, byte by byte, and so is a ``%`` that would be read as the
beginning of such a sequence. Percent-decoding a name therefore gives the bytes of its path back, and two paths never
share a name. No name depends on which other files there are.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from storage.redaction import Redactor

METADATA = "metadata.json"

_OWN_ENDINGS = (".patch", ".bundle", "-untracked.txt", "-conversation.jsonl")
_UPLOADED = re.compile("uploaded-[0-9a-f]{12}")
_PLACEHOLDER = "[redacted:"
# Listed here and not asked of unicodedata: names must not change with the interpreter's tables.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff"
    "\U000e0000-\U000e0fff]|^\\s+|\\s+$|%(?=[0-9A-Fa-f]{2})"
)
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


def as_text(path: str) -> str:
    """A path as text; percent-decoding it gives the path's bytes. Its slashes stay."""
    return "/".join(_part_as_text(part) for part in os.fsencode(path).decode(errors="surrogateescape").split("/"))


def redacted_text(path: str, redactor: Redactor) -> str:
    """A path as text, with known secrets replaced: as they are in the path, and as the text would write them."""
    return redactor.redact_text(as_text(os.fsdecode(redactor.redact(os.fsencode(path)))))


def patch_name(task_id: str) -> str:
    """Name of the run's patch."""
    return f"{task_id}.patch"


def bundle_name(task_id: str) -> str:
    """Name of the run's git bundle."""
    return f"{task_id}.bundle"


def untracked_name(task_id: str) -> str:
    """Name of the run's list of untracked files."""
    return f"{task_id}-untracked.txt"


def conversation_name(task_id: str) -> str:
    """Name of the conversation of the run's agent, as Claude Code keeps it."""
    return f"{task_id}-conversation.jsonl"


def uploaded_name(artifact_id: str, name: str) -> str:
    """Name of an artifact that a client has uploaded, beside those of the workspace: several may be called the same."""
    return f"uploaded-{artifact_id[:12]}/{_part_as_text(name)}"


def is_uploaded_name(name: str) -> bool:
    """Whether a name can only be that of an uploaded artifact."""
    return _UPLOADED.fullmatch(name.partition("/")[0]) is not None


def names_of(paths: Iterable[str], task_id: str, redactor: Redactor) -> dict[str, str]:
    """The artifact name of each workspace path: the path as text, never one of the run's own names.

    Known secrets are replaced in it. Where that leaves several paths with one name, they are numbered: nothing that is
    made from the value itself may tell them apart.
    """
    names: dict[str, str] = {}
    used: set[str] = set()
    for path in sorted(set(paths), key=os.fsencode):
        plain = name = _name_of(path, task_id, redactor)
        number = 1
        while name in used:
            number += 1
            name = f"{plain}[{number}]"
        used.add(name)
        names[path] = name
    return names


def shown_path(path: str, redactor: Redactor) -> str:
    """A workspace path as it is listed: itself, with known secrets replaced; as text where its bytes are no UTF-8."""
    redacted = redactor.redact(os.fsencode(path))
    try:
        return redacted.decode()
    except UnicodeDecodeError:
        return as_text(os.fsdecode(redacted))


def _name_of(path: str, task_id: str, redactor: Redactor) -> str:
    raw = os.fsencode(path)
    redacted = redactor.redact(raw)
    name = as_text(os.fsdecode(redacted))
    if redacted == raw:
        # The placeholder is kept for what was replaced; a file that is called so is written otherwise.
        name = name.replace(_PLACEHOLDER, "%5B" + _PLACEHOLDER[1:])
        if _is_own(name.partition("/")[0], task_id):
            name = _escaped(name[0]) + name[1:]
    # A second look: the form in which a name is written must not bring a value back.
    return redactor.redact_text(name)


def _is_own(first: str, task_id: str) -> bool:
    """Whether a name, or the directory that it begins with, is one of Taskyard's own, in any case of letters."""
    folded, own = first.casefold(), task_id.casefold()
    ours = folded == METADATA or is_uploaded_name(folded)
    return ours or (folded.startswith(own) and folded.endswith(_OWN_ENDINGS))


def _part_as_text(part: str) -> str:
    text = _UNSHOWN.sub(_escaped_match, part)
    return text if unicodedata.is_normalized("NFC", text) else _BEYOND_ASCII.sub(_escaped_match, text)


def _escaped_match(match: re.Match[str]) -> str:
    return _escaped(match[0])


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogateescape"))
