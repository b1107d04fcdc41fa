"""Ids of machines: ``vm-`` and 16 hexadecimal digits, made by chance or of what the machine is for."""

from __future__ import annotations

import hashlib
import re
import secrets

_PREFIX = "vm-"
_DIGITS = 16

MACHINE_ID = re.compile(rf"{_PREFIX}[0-9a-f]{{{_DIGITS}}}")


def new_machine_id() -> str:
    """An id that no machine has."""
    return _PREFIX + secrets.token_hex(_DIGITS // 2)


def machine_id_of(owner: str) -> str:
    """The one id of the machine that belongs to an owner, such as a workflow's run id."""
    return _PREFIX + hashlib.sha256(owner.encode()).hexdigest()[:_DIGITS]
