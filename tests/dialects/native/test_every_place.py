"""Hostile values in every place of every route that the server describes: none is a failure of the server."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.api_site import ApiSite
from tests.dialects.native.test_logs import ended_run

VALUES = [
    b"9" * 5000, b"-1", b"1e999", b"NaN", b"%00", b"%ff%fe", b"%", b"%zz", b"%ed%a0%80", b"..%2f..%2fetc",
    b"\xff\xfe", b"%F0%9F%9A%80" * 200, b"[", b"a+b", b"'\"\\", b"true", b"0" * 5000, b"%E2%80%AE", b"//", b"x" * 6000,
]  # fmt: skip
HEADERS = (
    b"Last-Event-ID", b"Range", b"If-Range", b"Accept", b"Content-Type", b"Content-Encoding", b"Origin", b"Host",
    b"Content-Length", b"Transfer-Encoding",
)  # fmt: skip
DEEP = b'{"a":' * 5000
BODIES = [
    b"", b"null", b"[]", b'"x"', b"{", DEEP, b"[" * 5000 + b"]" * 5000, b"\xff\xfe", b"\x00", b'{"text": NaN}',
    b'{"text": "a", "text": "b"}', b'{"reason": "a", "reason": "b"}', b'{"text": "\\ud800"}', b'{"reason": "\\ud800"}',
    b'{"text": "a", "other": 1}', b'{"text": 1}', b'{"reason": {"a": 1}}', b'{"force": "much"}',
    b'{"n": ' + b"9" * 5000 + b"}", b"{" + b",".join(b'"k%d":1' % n for n in range(30_000)) + b"}",
    b'{"reason": "' + b"r" * 3000 + b'"}', b'{"allow": "a"}', b'{"allow": ["\\ud800"]}', b'{"mode": {"a": []}}',
]  # fmt: skip
AT_ONCE = 16
# Values tried in each place: there are some hundred places.
EACH = 2


@dataclass
class Attempt:
    """A request that is sent as it is, unlike a client library would."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    async def status(self, site: ApiSite) -> int:
        """The answer's status; 0 when the server hung up instead, which its HTTP parser may do."""
        reader, writer = await asyncio.open_connection("127.0.0.1", site.settings.api_port)
        headers = {b"Host": b"127.0.0.1", b"Connection": b"close", b"Content-Length": b"%d" % len(self.body)}
        lines = (b"%s: %s" % each for each in (headers | self.headers).items())
        writer.write(b"\r\n".join([b"%s %s HTTP/1.1" % (self.method, self.target), *lines, b"", self.body]))
        # The body that a header promises does not come.
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(100_000), 60)
        writer.close()
        status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
        return int(status[1]) if status else 0


def attempts(description: dict[str, Any], task_id: bytes) -> Iterator[Attempt]:
    """In every place of every route some of the hostile values, in a few hundred places all of them."""
    chance = random.Random(0)
    for path, operations in description["paths"].items():
        template = path.encode()
        here = template.replace(b"{task_id}", task_id).replace(b"{name}", b"metadata.json").replace(b"{key}", b"k")
        for name, operation in operations.items():
            method = name.upper().encode()
            queries = [each["name"].encode() for each in operation.get("parameters", []) if each["in"] == "query"]
            places: list[Callable[[bytes], Attempt]] = [
                lambda value: Attempt(method, re.sub(rb"\{\w+\}", lambda _: value, template)),  # noqa: B023 -- used at once
                *(
                    lambda value, query=query: Attempt(method, b"%s?%s=%s" % (here, query, value))  # noqa: B023
                    for query in [*queries, b"other"]
                ),
                *(lambda value, header=header: Attempt(method, here, {header: value}) for header in HEADERS),  # noqa: B023
            ]
            yield from (place(value) for place in places for value in chance.sample(VALUES, EACH))
            for body in BODIES if method in {b"POST", b"PATCH", b"DELETE"} else []:
                yield Attempt(method, here, {b"Content-Type": b"application/json"}, body)
                yield Attempt(method, here, {b"Content-Type": b"application/yaml"}, body)


@pytest.mark.timeout(600)
async def test_no_hostile_value_in_any_place_is_a_fault_of_the_server(site: ApiSite) -> None:
    ended = await ended_run(site, "one")
    description = (await site.http.get("/openapi.json")).json()
    limit = asyncio.Semaphore(AT_ONCE)

    async def failure(attempt: Attempt) -> str:
        async with limit:
            status = await attempt.status(site)
        return f"{status}: {str(attempt)[:300]}" if status >= 500 else ""

    all_of_them = list(attempts(description, ended.encode()))
    with capture_logs() as logged:
        failed = [each for each in await asyncio.gather(*map(failure, all_of_them)) if each]
    assert not failed, "\n".join(failed[:20])
    assert len(all_of_them) > 400
    assert [entry for entry in logged if entry["log_level"] in {"error", "critical"}] == []
