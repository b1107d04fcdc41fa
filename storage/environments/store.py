"""Sandbox environments as objects of the bucket, their variables sealed: only servers and VM hosts can read those.

    environments/<id>/<revision>.json

Each change is a revision of its own, which whoever writes it first has; the newest counts. One that is deleted has a
last revision that says so. Values of variables are encrypted under a key that is made from the one that servers and VM
hosts share, and bound to their environment: they open nothing under the name of another.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime

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


class Environment(BaseModel):
    """One environment as it is stored. ``network`` is ``trusted``, ``full`` or ``custom``, ``domains`` its host rules.

    ``owner`` is who made it, and with ``private`` alone sees it. ``variables`` are names; their values are ``sealed``.
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


class EnvironmentStore:
    """Reads and writes environments. ``key`` gives the key that servers and VM hosts share. All methods block.

    All raise BucketUnavailable.
    """

    def __init__(self, bucket: ObjectStore, key: Callable[[], bytes]) -> None:
        self._bucket = bucket
        self._key = key

    def write(self, environment: Environment) -> bool:
        """Store a revision. False when somebody else has written it before; nothing is changed then."""
        data = environment.model_dump_json().encode()
        key = _revision_key(environment.id, environment.revision)
        if not self._bucket.put(key, data, if_absent=True, content_type="application/json"):
            # The answer of a first try may have been lost.
            return self._bucket.get(key) == data
        self._bucket.delete(_revision_key(environment.id, each) for each in self._older(environment))
        return True

    def newest(self, environment_id: str) -> Environment:
        """The environment as it stands. Raises NotFound."""
        keys = [each.key for each in self._bucket.list(f"{_PREFIX}{environment_id}/")]
        for key in reversed(keys):
            found = self._read(key)
            if found is not None:
                if found.deleted:
                    break
                return found
        raise NotFound(f"There is no sandbox environment '{environment_id[:80]}'.")

    def all(self) -> list[Environment]:
        """All that are there, the newest first."""
        newest: dict[str, str] = {}
        for each in self._bucket.list(_PREFIX):
            newest[each.key.split("/")[1]] = each.key
        read = [self._read(key) for key in newest.values()]
        found = [each for each in read if each is not None and not each.deleted]
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

    def _older(self, environment: Environment) -> list[int]:
        """Revisions before the one before: a reader may still be at that."""
        keys = [each.key for each in self._bucket.list(f"{_PREFIX}{environment.id}/")]
        revisions = [int(key.rpartition("/")[2].removesuffix(".json")) for key in keys]
        return [each for each in revisions if each < environment.revision - (0 if environment.deleted else 1)]

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
