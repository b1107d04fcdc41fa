"""The lines that answer a command: text where it is text, nothing of it lost, and signs of life."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.machines.processes import Told, Written
from api.native.machines import exec as commands
from foundation.errors import MachineLost

EXIT = Told("exit", {"code": 0})


async def told(*events: Written | Told | Exception) -> list[dict[str, Any]]:
    async def coming() -> AsyncIterator[Written | Told]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    return [line async for line in commands._lines(coming())]


async def test_every_byte_is_in_a_line_as_text_or_as_base64() -> None:
    pieces = [
        b"plain\n",
        "gr\u00fc\u00df".encode()[:-1],
        "gr\u00fc\u00df".encode()[-1:],
        b"\xff\xfe",
        b"x\xe2\x82",
        b"y",
        b"\xe2\x82",
    ]
    lines = await told(Told("started", {"pid": 1}), *(Written("stdout", piece) for piece in pieces), EXIT)
    assert (lines[0], lines[-1]) == ({"started": {"pid": 1}}, {"exit": {"code": 0}})
    assert lines[1:3] == [{"stream": "stdout", "text": "plain\n"}, {"stream": "stdout", "text": "gr\u00fc"}]
    written = [line["text"].encode() if "text" in line else base64.b64decode(line["data"]) for line in lines[1:-1]]
    assert b"".join(written) == b"".join(pieces)


async def test_streams_do_not_share_half_a_character() -> None:
    lines = await told(Written("stdout", b"\xc3"), Written("stderr", b"\xbc"), Written("stdout", b"\xbc"), EXIT)
    assert lines[:-1] == [{"stream": "stderr", "data": "vA=="}, {"stream": "stdout", "text": "\u00fc"}]


async def test_an_error_is_raised_where_it_comes() -> None:
    with pytest.raises(MachineLost):
        await told(Told("started", {}), MachineLost("gone"))
