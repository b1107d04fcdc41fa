"""Credentials of a repository: which of the run's secrets opens it, and by which keys its server is known."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from foundation.faults import Fault
from workflows.specs import wire

MAX_KNOWN_HOSTS = 16 * 1024

_LINE = re.compile(
    r"(?:@(?:cert-authority|revoked)[ \t]+)?[^\s#@]\S*[ \t]+(\S+)[ \t]+([A-Za-z0-9+/]+={0,2})(?:[ \t].*)?"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")


def known_hosts(text: str) -> str:
    """The text, when each of its lines is one that ssh reads. Raises ValueError with a sentence."""
    if len(text) > MAX_KNOWN_HOSTS:
        raise ValueError(f"is too long: {len(text)} characters; {MAX_KNOWN_HOSTS} are the most")
    lines = [line.strip() for line in text.split("\n")]
    keys = [line for line in lines if line and not line.startswith("#")]
    for line in keys:
        match = _LINE.fullmatch(line)
        if not line.isprintable() or match is None or not _is_key(match[1], match[2]):
            raise ValueError(
                f"has a line that is none of known_hosts: line {lines.index(line) + 1}; write HOST KEYTYPE KEY, as "
                "'ssh-keyscan HOST' prints it, and compare the key with what the server's owner says"
            )
    if not keys:
        raise ValueError("has no key; write HOST KEYTYPE KEY in each line, or leave the field out")
    return text


def _is_key(kind: str, encoded: str) -> bool:
    """Whether the encoded key begins with the length and the name of its kind, as every SSH public key does."""
    try:
        key = b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        return False
    return key.startswith(len(kind).to_bytes(4, "big") + kind.encode()) and len(key) > len(kind) + 4


def faults(repository: wire.Repository, secrets: Sequence[wire.SecretReference]) -> Iterator[Fault]:
    """What is wrong with the credentials of a repository, beside what each field may hold."""
    name = repository.credentials
    if name is not None and name not in {secret.name for secret in secrets}:
        message = "is the name of no secret of this manifest; add it to 'secrets', or correct the name"
        yield Fault("repository.credentials", message, "unknown_reference")
    elif name is not None and repository.url.startswith("file://"):
        yield Fault("repository.credentials", "opens nothing: a directory of the VM host asks for none", "unused")
    elif name is not None and is_sent_open(repository.url):
        message = "would be sent unencrypted; let repository.url begin with https://, or with ssh://"
        yield Fault("repository.credentials", message, "unencrypted")
    if repository.known_hosts is not None and not (is_ssh(repository.url) and name is not None):
        message = "is read with an SSH URL and repository.credentials only; give both, or leave it out"
        yield Fault("repository.known_hosts", message, "unused")


def is_ssh(url: str) -> bool:
    """Whether git speaks SSH to the repository's server."""
    return not url.startswith(("https://", "http://", "file://"))


def is_sent_open(url: str) -> bool:
    """Whether credentials for the URL would cross a network as everybody can read them."""
    return url.startswith("http://") and _LOOPBACK.fullmatch(urlsplit(url).hostname or "") is None
