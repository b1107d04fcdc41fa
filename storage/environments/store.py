"""Sandbox environments as objects of the bucket, their variables sealed: only servers and VM hosts can read those.

    environments/<id>/<revision>.json

Each change is a revision of its own, which whoever writes it first has; the newest counts. One that is deleted has the
last revision that there can be, behind which no change comes, however late it is. Values of variables are encrypted
under a key that is made from the one that servers and VM hosts share, and bound to their environment: they open nothing
under the name of another.
"""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.errors import HostNotReady, NotFound
from storage.bucket import ObjectStore

MOST = 1000

_PREFIX = "environments/"
_PURPOSE = b"taskyard sandbox environments"
_NONCE_BYTES = 12
_KEY_BYTES = 32
_DIGITS = 8
_LAST = 10**_DIGITS - 1
# How many changes an environment remembers, and how often it is looked for when others change it meanwhile.
_MARKS = 20
_TRIES = 5
# What is left of one that is deleted keeps changes away that are still under way; then it goes, some at each look.
_KEPT = timedelta(days=1)
_SWEPT = 10


class Environment(BaseModel):
    """One environment as it is stored. ``network`` is ``trusted``, ``full`` or ``custom``, ``domains`` its host rules.

    ``owner`` is who made it, and with ``private`` alone sees it. ``variables`` are names; their values are ``sealed``.
    ``marks`` are those of its last changes, each of which has one of its own.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    revision: int = 1
    project: str
    owner: str
    name: str
    network: str
    domains: list[str] = []
    default_domains: bool = False
    repositories: list[str] = []
    private: bool = True
    variables: list[str] = []
    sealed: str = ""
    created_at: datetime
    updated_at: datetime
    deleted: bool = False
    marks: list[str] = []

    def changed(self, **changes: Any) -> Self:
        """The next revision."""
        marks = [*self.marks, uuid4().hex][-_MARKS:]
        return self.model_copy(update={**changes, "revision": self.revision + 1, "marks": marks})


class EnvironmentStore:
    """Reads and writes environments. ``key`` gives the key that servers and VM hosts share. All methods block.

    All raise BucketUnavailable.
    """

    def __init__(self, bucket: ObjectStore, key: Callable[[], bytes]) -> None:
        self._bucket = bucket
        self._key = key

    def write(self, environment: Environment) -> bool:
        """Store a new environment, or the next revision of one. False when others were quicker: nothing is changed."""
        key = _revision_key(environment.id, environment.revision)
        data = environment.model_dump_json().encode()
        # The answer of a first try may have been lost.
        if not self._put(key, data) and self._bucket.get(key) != data:
            return False
        keys = self._keys(environment.id)
        newest = keys[-1] if keys else key
        if newest > key and not self._stands_on(newest, environment):
            # It came so late that its place had become free again.
            self._bucket.delete([key])
            return False
        # A reader may still be at the revision before.
        before = _revision_key(environment.id, environment.revision - 1)
        self._bucket.delete([each for each in keys if each < before])
        return True

    def delete(self, environment: Environment) -> None:
        """Delete it, whatever others change meanwhile; one that is deleted already stays so."""
        gone = Environment(
            id=environment.id,
            revision=_LAST,
            project=environment.project,
            owner=environment.owner,
            name="",
            network=environment.network,
            created_at=environment.created_at,
            updated_at=datetime.now(UTC),
            deleted=True,
        )
        self._put(_revision_key(gone.id, _LAST), gone.model_dump_json().encode())
        self._bucket.delete(self._keys(gone.id)[:-1])

    def newest(self, environment_id: str) -> Environment:
        """The environment as it stands. Raises NotFound."""
        for _ in range(_TRIES):
            keys = self._keys(environment_id)
            found = next(filter(None, map(self._read, reversed(keys))), None)
            if found is not None and not found.deleted:
                return found
            if found is not None or not keys:
                break
            # All that were listed have gone before they were read.
        raise _missing(environment_id)

    def all(self) -> list[Environment]:
        """All that are there, the newest first. What is left of deleted ones is taken away in passing."""
        found: list[Environment] = []
        deleted: list[str] = []
        late: list[str] = []
        for environment_id, keys in self._listed().items():
            if keys[-1] == _revision_key(environment_id, _LAST):
                deleted.append(environment_id)
                late += keys[:-1]
                continue
            with suppress(NotFound):
                found.append(self._read_now(environment_id, keys[-1]))
        self._bucket.delete(late)
        self._sweep(random.sample(deleted, min(_SWEPT, len(deleted))))
        return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)

    def seal(self, environment_id: str, values: Mapping[str, str]) -> str:
        """The values of an environment's variables as they are stored. Raises HostNotReady without a key."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher().encrypt(nonce, json.dumps(dict(values)).encode(), environment_id.encode())
        return base64.b64encode(nonce + sealed).decode()

    def value(self, environment_id: str, name: str) -> str:
        """The value of one variable. Raises NotFound, and HostNotReady when this process has another key."""
        environment = self.newest(environment_id)
        if name not in environment.variables:
            raise NotFound(f"The sandbox environment '{environment.name}' has no variable {name}.")
        try:
            sealed = base64.b64decode(environment.sealed)
            data = self._cipher().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], environment_id.encode())
            return str(json.loads(data)[name])
        except (InvalidTag, ValueError, LookupError):
            raise HostNotReady(
                "The variables of the sandbox environment cannot be read with this process's key: give servers and VM "
                "hosts one TASKYARD_HOST_KEY, or write the variables anew."
            ) from None

    def _put(self, key: str, data: bytes) -> bool:
        return self._bucket.put(key, data, if_absent=True, content_type="application/json")

    def _keys(self, environment_id: str) -> list[str]:
        """The revisions that are there, the newest last."""
        return [each.key for each in self._bucket.list(f"{_PREFIX}{environment_id}/")]

    def _listed(self) -> dict[str, list[str]]:
        """The revisions of every environment, the newest last, by its id."""
        listed: dict[str, list[str]] = {}
        for each in self._bucket.list(_PREFIX):
            listed.setdefault(each.key.split("/")[1], []).append(each.key)
        return listed

    def _stands_on(self, key: str, environment: Environment) -> bool:
        """Whether the revision at ``key`` was made of this one, perhaps with others between them."""
        newest = self._read(key)
        return newest is not None and any(mark in newest.marks for mark in environment.marks[-1:])

    def _read_now(self, environment_id: str, key: str) -> Environment:
        """What a listing has just shown, or what has come in its place. Raises NotFound."""
        found = self._read(key)
        if found is None:
            return self.newest(environment_id)
        if found.deleted:
            raise _missing(environment_id)
        return found

    def _sweep(self, environment_ids: list[str]) -> None:
        """Remove the rest of those that were deleted long ago."""
        for environment_id in environment_ids:
            key = _revision_key(environment_id, _LAST)
            gone = self._read(key)
            if gone is not None and gone.updated_at < datetime.now(UTC) - _KEPT:
                self._bucket.delete([key])

    def _read(self, key: str) -> Environment | None:
        data = self._bucket.get(key)
        try:
            return Environment.model_validate_json(data) if data else None
        except ValidationError:
            return None

    def _cipher(self) -> AESGCM:
        return AESGCM(HKDF(SHA256(), _KEY_BYTES, None, _PURPOSE).derive(self._key()))


def _revision_key(environment_id: str, revision: int) -> str:
    return f"{_PREFIX}{environment_id}/{revision:0{_DIGITS}d}.json"


def _missing(environment_id: str) -> NotFound:
    return NotFound(f"There is no sandbox environment '{environment_id[:80]}'.")
