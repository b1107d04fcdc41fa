"""The name of a server in the first message of TLS (ClientHello), which a client sends before anything is encrypted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: A ClientHello is a few hundred bytes, and a few thousand with keys of the newest kinds.
HELLO_BYTES_MOST = 32 * 1024

_HANDSHAKE = 0x16
_CLIENT_HELLO = 0x01
_MAJOR = 0x03
_RECORD_HEAD, _RECORD_MOST = 5, 2**14
# Clients send one, or a few; all are walked through again whenever a byte more has come.
_RECORDS_MOST = 2048
_MESSAGE_HEAD = 4
_VERSION_AND_RANDOM = 34
_SERVER_NAME = 0
_HOST_NAME = 0
# Records of TLS of any kind; only a handshake may come first.
_RECORDS = range(0x14, 0x19)
# The message that SSL 2 began with, which some servers still take for the beginning of TLS: it names no server.
_SSL2_LENGTH = 0x80
_SSL2_HEAD = 3


class Malformed(Exception):
    """What looks like TLS does not begin as TLS does; the text says in what way."""


@dataclass(frozen=True)
class ClientHello:
    """The names of the server that the client wants to speak to: one, or none; in lower case."""

    names: tuple[str, ...]


def looks_like_tls(data: bytes) -> bool | None:
    """Whether this is the beginning of TLS; None when it takes more bytes to tell."""
    if not data:
        return None
    if data[0] in _RECORDS:
        return None if len(data) == 1 else data[1] == _MAJOR
    if data[0] & _SSL2_LENGTH:
        return None if len(data) < _SSL2_HEAD else data[2] == _CLIENT_HELLO
    return False


def client_hello(data: bytes) -> ClientHello | None:
    """The first message of TLS out of what a client has sent; None when it is not whole yet. Raises Malformed."""
    message = bytearray()
    for number, fragment in enumerate(_fragments(data)):
        if number == _RECORDS_MOST:
            raise Malformed("the ClientHello comes in too many records")
        message += fragment
        size = _size(message)
        if len(message) >= size:
            return ClientHello(_names(memoryview(bytes(message[_MESSAGE_HEAD:size]))))
    # Records of a byte each would make it much longer than its content.
    if len(data) > 2 * HELLO_BYTES_MOST:
        raise Malformed("the ClientHello is too large")
    return None


def _size(message: bytearray) -> int:
    """How long the message is, or is at least, as far as its head tells. Raises Malformed for another message."""
    if message and message[0] != _CLIENT_HELLO:
        raise Malformed("it does not begin with a ClientHello")
    if len(message) < _MESSAGE_HEAD:
        return _MESSAGE_HEAD
    size = _MESSAGE_HEAD + int.from_bytes(message[1:_MESSAGE_HEAD])
    if size > HELLO_BYTES_MOST:
        raise Malformed("the ClientHello is too large")
    return size


def _fragments(data: bytes) -> Iterator[bytes]:
    """What the records hold, as far as they have come. Raises Malformed at the first that is not of a handshake."""
    place = 0
    while len(data) >= place + _RECORD_HEAD:
        kind, major, length = data[place], data[place + 1], int.from_bytes(data[place + 3 : place + _RECORD_HEAD])
        if kind != _HANDSHAKE or major != _MAJOR:
            raise Malformed("it does not begin with a ClientHello")
        if not 0 < length <= _RECORD_MOST:
            raise Malformed("a record has no possible length")
        place += _RECORD_HEAD
        yield data[place : place + length]
        place += length


class _Reader:
    """Takes vectors off the front of a message. Raises Malformed where they do not fit."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __bool__(self) -> bool:
        return len(self._content) > 0

    def take(self, count: int) -> memoryview:
        if count > len(self._content):
            raise Malformed("the ClientHello ends within a field")
        taken, self._content = self._content[:count], self._content[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> memoryview:
        """What follows its own length of ``size`` bytes."""
        return self.take(self.number(size))


def _names(hello: memoryview) -> tuple[str, ...]:
    reader = _Reader(hello)
    reader.take(_VERSION_AND_RANDOM)
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    if not reader:
        return ()
    extensions = _Reader(reader.vector(2))
    if reader:
        raise Malformed("something follows the extensions of the ClientHello")
    found: list[str] = []
    while extensions:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            found += _server_names(_Reader(content))
    return tuple(found)


def _server_names(extension: _Reader) -> list[str]:
    names = _Reader(extension.vector(2))
    if extension:
        raise Malformed("something follows the server names")
    found = []
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind != _HOST_NAME:
            raise Malformed("a server is named in an unknown way")
        found.append(bytes(name).decode("ascii", "replace").lower())
    return found
