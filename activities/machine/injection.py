"""Secrets that never enter a machine: the placeholder that its guest has, and the header that the value is put into."""

from __future__ import annotations

import base64
import secrets
import string
from dataclasses import dataclass

from foundation.errors import SecretUnavailable
from workflows.specs.hosts import HostRule
from workflows.specs.injection import injected_host
from workflows.specs.wire import Injection, SecretReference

PLACEHOLDER_PREFIX = "tyk-placeholder-"
# No letter that any form of text escapes: as it is in JSON, in a URL, in a shell.
_ALPHABET = string.ascii_letters + string.digits
_RANDOM_LEAST = 24
# Programs look at a token's length at most; a key of several thousand characters is none that they would look at.
_LENGTH_MOST = 255
# Shorter ones occur by chance in what a host answers, where they are replaced.
_VALUE_LEAST = 8
# A head of a request has no room for more.
_VALUE_MOST = 8192
_BASIC = "basic "


def new_placeholder(value: str) -> str:
    """A placeholder for the value, as long as it is where that leaves enough to chance."""
    length = min(len(value), _LENGTH_MOST) - len(PLACEHOLDER_PREFIX)
    return PLACEHOLDER_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(max(_RANDOM_LEAST, length)))


@dataclass(frozen=True)
class InjectedSecret:
    """A secret that the egress proxy puts into requests to its hosts. The ports of its rules are given."""

    name: str
    value: str
    placeholder: str
    hosts: tuple[HostRule, ...]
    header: str
    format: str

    @classmethod
    def of(cls, name: str, value: str, placeholder: str, injection: Injection) -> InjectedSecret:
        """From what the manifest says of it. Raises ValueError for a host that is no rule."""
        hosts = tuple(injected_host(text) for text in injection.hosts)
        return cls(name, value, placeholder, hosts, injection.header, injection.format)

    def is_for(self, host: str, port: int) -> bool:
        """Whether the value is put into requests to this host, whose name ``host_name`` has read."""
        return any(rule.allows(host, port) for rule in self.hosts)

    @property
    def header_value(self) -> str:
        """The whole header, for a request without one. User and password of ``Basic`` are encoded, as they are sent."""
        text = self.format.replace("{}", self.value)
        scheme, credentials = text[: len(_BASIC)], text[len(_BASIC) :]
        if scheme.lower() == _BASIC and ":" in credentials:
            return scheme + base64.b64encode(credentials.encode()).decode()
        return text

    def filled(self, header: str) -> str | None:
        """The header's value with the secret in the placeholder's place; None when the placeholder is not in it.

        It is found in the encoded user and password of ``Basic`` too.
        """
        if self.placeholder in header:
            return header.replace(self.placeholder, self.value)
        if header[: len(_BASIC)].lower() != _BASIC:
            return None
        try:
            credentials = base64.b64decode(header[len(_BASIC) :].strip(), validate=True)
        except ValueError:
            return None
        placeholder = self.placeholder.encode()
        if placeholder not in credentials:
            return None
        filled = credentials.replace(placeholder, self.value.encode())
        return header[: len(_BASIC)] + base64.b64encode(filled).decode()


def check_value(reference: SecretReference, value: str) -> None:
    """Raises SecretUnavailable, whose sentence does not hold the value, for one that no header can hold."""
    if not all("\x20" <= letter <= "\x7e" for letter in value) or value != value.strip():
        reason = "holds letters that a header cannot hold; only printed ASCII without spaces around it can be injected"
    elif not _VALUE_LEAST <= len(value) <= _VALUE_MOST:
        reason = f"has {len(value)} characters; {_VALUE_LEAST} to {_VALUE_MOST} can be injected"
    else:
        return
    raise SecretUnavailable(
        f"Secret {reference.name}: its value {reason}. Mend it, or leave 'inject' out.",
        name=reference.name,
        source=reference.source,
        key=reference.key,
    )
