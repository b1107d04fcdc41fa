"""Host names of ports: ``PORT-ID.DOMAIN`` leads to a port of the machine of whatever has that id.

A label of a name has 63 characters of ``a`` to ``z``, digits and hyphens, whatever their case. In it an id stands as it
is, except that each other character, a hyphen beside another one, and a hyphen at the end is ``--`` and two hexadecimal
digits: ``fix.Login_2`` is ``fix--2e--4cogin--5f2``. An id that is too long then has no name; its ports have paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL_CHARS = 63
_LABEL = re.compile(r"([1-9]\d{0,4})-([a-z0-9-]+)")
_ESCAPED = re.compile(r"[^a-z0-9-]|-(?=-|$)|(?<=-)-")
_ESCAPE = re.compile(r"--([0-9a-f]{2})")
_PORT_MOST = 65535


@dataclass(frozen=True)
class PortName:
    """A port of the machine of ``owner``, which is a task run."""

    owner: str
    port: int


def host_of(name: PortName, domain: str) -> str | None:
    """The host name of a port; None when the id is too long for one."""
    label = f"{name.port}-{_ESCAPED.sub(_escaped, name.owner)}"
    return f"{label}.{domain}" if len(label) <= _LABEL_CHARS else None


def named_by(host: str, domain: str | None) -> PortName | None:
    """The port that the value of a Host field leads to; None for every other host."""
    if domain is None:
        return None
    name = host.lower().partition(":")[0].removesuffix(".")
    label, dot, rest = name.partition(".")
    found = _LABEL.fullmatch(label)
    if not dot or rest != domain or found is None or int(found[1]) > _PORT_MOST:
        return None
    named = PortName(_ESCAPE.sub(lambda match: chr(int(match[1], 16)), found[2]), int(found[1]))
    # One port has one name, and so one origin.
    return named if host_of(named, domain) == name else None


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"--{byte:02x}" for byte in match[0].encode("latin-1", "replace"))
