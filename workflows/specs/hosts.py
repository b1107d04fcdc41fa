"""Host rules: what a network policy names, as its author writes it and as the egress proxy asks it.

    example.org          this name, every port        *.example.org        every name below it, and not itself
    example.org:443      this name, one port          192.0.2.7:22         an address, which no name leads to

The form is public: manifests, the REST service, the command and signals write it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

MAX_RULES = 200
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAME_MOST = 253
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PORT_MOST = 65535
_BRACKETED = re.compile(r"\[([^\]]*)\](?::(.*))?", re.DOTALL)
# Every spelling in which some resolver takes a number for an address: 127.1, 0x7f000001, 017700000001, 2130706433.
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")


@dataclass(frozen=True)
class HostRule:
    """One rule. ``host`` is a lower-case name, or an address in its own spelling; ``port`` None is every port."""

    host: str
    port: int | None = None
    #: Names below ``host`` instead of ``host`` itself.
    below: bool = False

    def allows(self, host: str, port: int) -> bool:
        """Whether the rule names the host, which ``host_name`` has read, at this port."""
        if self.port not in {None, port}:
            return False
        return host.endswith("." + self.host) if self.below else host == self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port is not None else self.host
        return ("*." if self.below else "") + host + (f":{self.port}" if self.port is not None else "")


def host_rule(text: str) -> HostRule:
    """The rule that is written there. Raises ValueError with a sentence that says what is wrong."""
    written = text.strip().lower()
    if "://" in written:
        raise ValueError("is a URL; write the host's name alone, or name:port")
    if "/" in written or "@" in written:
        raise ValueError("is no host name: it holds '/' or '@'; write the host's name alone, or name:port")
    below = written.startswith("*.")
    host, port = _parted(written.removeprefix("*."))
    if host == "*" or written == "*":
        raise ValueError("would allow every host; that is network_mode 'full'")
    if "*" in host:
        raise ValueError("may have '*.' at its beginning and no other '*'")
    name = host_name(host)
    if below and is_address(name):
        raise ValueError("is an address with '*.' before it; nothing lies below an address")
    if below and "." not in name:
        raise ValueError(f"would allow all of '.{name}'; name a domain below it")
    return HostRule(name, port, below)


def rules(texts: Iterable[str]) -> Iterator[HostRule]:
    """The rules among the texts; what is none, of another version, allows nothing."""
    for text in texts:
        with suppress(ValueError):
            yield host_rule(text)


def host_name(text: str) -> str:
    """The name or address of a host in the one spelling that rules are compared in.

    Raises ValueError for what is neither: an address in another spelling than its own is one of these.
    """
    written = text.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        pass
    else:
        if "%" in written:
            raise ValueError("is an address with a zone; no rule can name one")
        return str(address)
    if not written.isascii():
        raise ValueError("holds letters that no host name has; write it as the network does (xn--...)")
    if len(written) > _NAME_MOST or not _NAME.fullmatch(written):
        raise ValueError("is no host name")
    if _NUMBER.fullmatch(written.rpartition(".")[2]):
        raise ValueError("is an address in a spelling that is not its own; write four decimal numbers")
    return written


def is_address(host: str) -> bool:
    """Whether what ``host_name`` gave is an address and no name."""
    return ":" in host or host.rpartition(".")[2].isdecimal()


def _parted(text: str) -> tuple[str, int | None]:
    """Host and port of the text; an IPv6 address has its port after brackets."""
    if match := _BRACKETED.fullmatch(text):
        return match[1], None if match[2] is None else _port(match[2])
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _port(port)
    return text, None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > _PORT_MOST:
        raise ValueError(f"has '{text[:20]}' for a port; ports are 1 to {_PORT_MOST}")
    return int(text)
