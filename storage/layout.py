"""The names of all objects in the bucket: everything of one resource lies below the directory of its kind and its id.

    hosts/<name>.json                    what a VM host said last of its room; beside the resources, not below one
    preserved/<name>.json                which machines of failed runs a VM host keeps; beside the resources too
    tasks/<id>/                          everything of a task run
    staged/<id>/                         artifacts that were uploaded for a run to come
    environments/<id>/<revision>.json    sandbox environments, whose variables are sealed
    incoming/<kind>/<id>/<artifact>      what a client has uploaded by a form and not told of yet

Below the directory of a resource:

    record.json                          its final record
    log/segments/<first id>              one flush of its log
    log/segments/sealed.json             the log is closed; lists its sealed parts
    log/merged/<last id>-<first id>      copy of many neighbouring segments, for readers of a live log
    log/sealed/<first id>-<last id>      entries of a closed log
    artifacts/index.json                 what was collected
    artifacts/files/<digest>-<name>      content of one collected artifact
    artifacts/manifest/<number>          what one request of a client added to the uploaded artifacts
    artifacts/uploaded/<id>-<name>       content of one uploaded artifact
    processes/records/<key>.json         a process of its machine whose output is kept, and how it ended
    processes/output/<key>/<stream>/<n>  a piece of that output, from byte n on

Entry ids in names are zero-padded, so that names sort as ids do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from foundation.errors import InvalidParameter

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ID_DIGITS = 16


class Span(NamedTuple):
    """An object that holds the entries ``first`` to ``last``, both included."""

    key: str
    first: int
    last: int


def hosts_prefix() -> str:
    """Prefix of what the VM hosts say."""
    return "hosts/"


def host_key(name: str) -> str:
    """Key of what one host says."""
    return f"{hosts_prefix()}{quote(name, safe='')}.json"


def preserved_key(host: str) -> str:
    """Key of which machines of failed runs one host keeps."""
    return f"preserved/{quote(host, safe='')}.json"


def incoming_prefix() -> str:
    """Prefix of what clients have uploaded by a form and not told of yet; the bucket deletes it after a day."""
    return "incoming/"


@dataclass(frozen=True)
class Place:
    """Where all of one resource lies, and the names of its objects. Made by ``Kind.place``, which checks the id.

    ``prefix`` is that of everything of the resource; as text, a place is what sentences call the resource.
    """

    noun: str
    id: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.noun} {self.id}"

    @property
    def record_key(self) -> str:
        """Key of the final record."""
        return f"{self.prefix}record.json"

    @property
    def log_prefix(self) -> str:
        """Prefix of all objects of the log."""
        return f"{self.prefix}log/"

    @property
    def segments_prefix(self) -> str:
        """Prefix of the segments and, sorted after all of them, the seal."""
        return f"{self.log_prefix}segments/"

    def segment_key(self, first_id: int) -> str:
        """Key of the segment whose first entry is ``first_id``; two writers of one id meet at one key."""
        return f"{self.segments_prefix}{first_id:0{_ID_DIGITS}d}"

    @property
    def seal_key(self) -> str:
        """Key of the seal. It sorts after every segment, so one listing from a segment on shows it too."""
        return f"{self.segments_prefix}sealed.json"

    @property
    def merged_prefix(self) -> str:
        """Prefix of the merged copies of a live log."""
        return f"{self.log_prefix}merged/"

    def merged_key(self, first_id: int, last_id: int) -> str:
        """Key of a merged copy: sorted by its last id, so a listing from an id on shows all with something newer."""
        return f"{self.merged_prefix}{last_id:0{_ID_DIGITS}d}-{first_id:0{_ID_DIGITS}d}"

    def sealed_part_key(self, first_id: int, last_id: int) -> str:
        """Key of one part of a closed log."""
        return f"{self.log_prefix}sealed/{first_id:0{_ID_DIGITS}d}-{last_id:0{_ID_DIGITS}d}"

    @property
    def artifacts_prefix(self) -> str:
        """Prefix of all artifacts and of what names them."""
        return f"{self.prefix}artifacts/"

    @property
    def artifact_index_key(self) -> str:
        """Key of the list of artifacts."""
        return f"{self.artifacts_prefix}index.json"

    def artifact_key(self, name: str) -> str:
        """Key of an artifact's content.

        The guest chooses file names, so the key holds only a harmless rest of them behind a digest that tells them
        apart.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return f"{self.artifacts_prefix}files/{digest}-{_harmless(name)}"

    @property
    def manifest_prefix(self) -> str:
        """Prefix of what clients have told of the artifacts that they uploaded."""
        return f"{self.artifacts_prefix}manifest/"

    def manifest_key(self, number: int) -> str:
        """Key of one addition to the uploaded artifacts, counted from 1; two clients of one number meet at one key."""
        return f"{self.manifest_prefix}{number:0{_ID_DIGITS}d}"

    def uploaded_key(self, artifact_id: str, name: str) -> str:
        """Key of an uploaded artifact's content."""
        return f"{self.artifacts_prefix}uploaded/{artifact_id}-{_harmless(name)}"

    def incoming_key(self, artifact_id: str) -> str:
        """Key at which a form of the bucket leaves what a client uploads, until it is looked at."""
        return f"{incoming_prefix()}{self.prefix}{artifact_id}"

    @property
    def process_records_prefix(self) -> str:
        """Prefix of the records of processes whose output is kept."""
        return f"{self.prefix}processes/records/"

    def process_record_key(self, key: str) -> str:
        """Key of what is known of one of them."""
        return f"{self.process_records_prefix}{quote(key, safe='')}.json"

    def process_pieces_prefix(self, key: str, stream: str) -> str:
        """Prefix of the pieces of one stream of a process."""
        return f"{self.prefix}processes/output/{quote(key, safe='')}/{stream}/"

    def process_piece_key(self, key: str, stream: str, offset: int) -> str:
        """Key of the piece that begins at byte ``offset``; two writers of one byte meet at one key."""
        return f"{self.process_pieces_prefix(key, stream)}{offset:0{_ID_DIGITS}d}"


@dataclass(frozen=True)
class Kind:
    """A kind of resource: ``directory`` holds all of them, ``noun`` is what one is."""

    directory: str
    noun: str

    def place(self, resource_id: str) -> Place:
        """The place of one resource. Raises InvalidParameter when the id could leave its directory."""
        if not _ID.fullmatch(resource_id):
            raise InvalidParameter(f"'{resource_id}' is not a {self.noun} id; use letters, digits, '.', '_' and '-'")
        return Place(self.noun, resource_id, f"{self.directory}/{resource_id}/")


TASKS = Kind(directory="tasks", noun="task")
STAGED = Kind(directory="staged", noun="staged artifact")


def segment_first_id(key: str) -> int:
    """First entry id of a segment, from its key."""
    return int(key.rpartition("/")[2])


def merged_span(key: str) -> Span:
    """What a merged copy holds, from its key."""
    last, _, first = key.rpartition("/")[2].partition("-")
    return Span(key, int(first), int(last))


def piece_offset(key: str) -> int:
    """First byte of a piece of a process's output, from its key."""
    return int(key.rpartition("/")[2])


def _harmless(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.rpartition("/")[2])[-80:].strip(".") or "file"
