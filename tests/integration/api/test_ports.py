"""Programs in a machine through the API: by path and by host name, over a real SSH server and real HTTP servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from api.machines.ports import exchange
from tests.stand_ins.ports.programs import BLOB, Program, answering, saying
from tests.stand_ins.ports.site import DOMAIN, TASK, PortSite

SIZE = 6 * 2**20


def fields(answer: httpx.Response) -> dict[str, str]:
    return dict(answer.json()["fields"])


async def test_a_request_reaches_the_program_as_it_was_written(ports: PortSite, program: Program) -> None:
    headers = {
        "Authorization": "Bearer of-the-api", "Cookie": "a=1", "X-Own": "yes", "Connection": "x-hop", "X-Hop": "no",
        "X-Forwarded-For": "1.2.3.4", "Taskyard-Epoch": "no",
    }  # fmt: skip
    target = "/a%2Fb//c%20d?x=1&y=%20"
    url = httpx.URL(f"http://127.0.0.1:{ports.port}").copy_with(raw_path=ports.path(program.port, target).encode())
    answer = await ports.http.request("PATCH", url, headers=headers, content=b"12345")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["method"], answer.json()["body"]) == ("PATCH", 5)
    assert answer.json()["target"] == target
    seen = fields(answer)
    assert seen["host"] == f"localhost:{program.port}"
    assert seen["x-own"] == "yes"
    # From loopback, as a server before this one would say it.
    assert seen["x-forwarded-for"] == "1.2.3.4"
    assert seen["x-forwarded-host"] == f"127.0.0.1:{ports.port}"
    assert seen["x-forwarded-prefix"] == ports.path(program.port, "")
    assert seen["connection"] == "close"
    assert not seen.keys() & {"authorization", "cookie", "x-hop", "taskyard-epoch"}


async def test_by_name_the_origin_is_the_programs_own(ports: PortSite, program: Program) -> None:
    headers = {"Authorization": "Basic of-the-program", "Cookie": "a=1; taskyard-session=2; b=3"}
    answer = await ports.named(program.port, "POST", "/api/v1/tasks?x", headers=headers, content=b"1")
    assert answer.status_code == 200, answer.text
    assert answer.json()["target"] == "/api/v1/tasks?x"
    seen = fields(answer)
    assert seen["host"] == ports.name(program.port)
    assert seen["authorization"] == "Basic of-the-program"
    assert seen["cookie"] == "a=1; b=3"
    assert "content-security-policy" not in answer.headers


METHODS = ["GET", "HEAD", "OPTIONS", "DELETE"]


async def test_every_method_passes(ports: PortSite, program: Program) -> None:
    for method in METHODS:
        for answer in (
            await ports.http.request(method, ports.path(program.port, "/x")),
            await ports.named(program.port, method, "/x"),
        ):
            assert answer.status_code == 200
            assert method == "HEAD" or answer.json()["method"] == method


async def test_bodies_pass_both_ways_at_once_whatever_their_size(ports: PortSite, program: Program) -> None:
    blob = BLOB * (SIZE // len(BLOB))

    async def body() -> AsyncIterator[bytes]:
        for begin in range(0, SIZE, 100_000):
            yield blob[begin : begin + 100_000]

    for content in (blob, body()):
        answer = await ports.http.post(ports.path(program.port, "/echo"), content=content)
        assert answer.status_code == 200
        assert answer.content == blob


async def test_an_answer_is_passed_on_before_the_request_is_whole(ports: PortSite, program: Program) -> None:
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"second"

    request = ports.http.build_request("POST", ports.path(program.port, "/echo"), content=body())
    # The client at hand reads nothing before it has sent all.
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.port)
    writer.write(f"POST {request.url.path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    writer.write(b"5\r\nfirst\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    assert await reader.readuntil(b"first\r\n")
    writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
    assert await reader.readuntil(b"second\r\n0\r\n\r\n")
    writer.close()


async def test_who_expects_to_be_told_to_go_on_is(ports: PortSite, program: Program) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.port)
    path = ports.path(program.port, "/echo")
    writer.write(
        f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
    )
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"ok")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_events_come_as_they_are_sent_and_who_leaves_is_missed(ports: PortSite, program: Program) -> None:
    async with ports.http.stream("GET", ports.path(program.port, "/events")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: first"
        program.app.state.more.set()
        assert [line async for line in lines if line] == ["data: second"]
    program.app.state.more.clear()
    program.app.state.left.clear()
    async with ports.http.stream("GET", ports.path(program.port, "/events")) as answer:
        assert await anext(answer.aiter_lines()) == "data: first"
    await asyncio.wait_for(program.app.state.left.wait(), 10)


async def test_parts_and_what_has_not_changed(ports: PortSite, program: Program) -> None:
    part = await ports.http.get(ports.path(program.port, "/blob"), headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, BLOB[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(BLOB)}"
    same = await ports.http.get(ports.path(program.port, "/blob"), headers={"If-None-Match": '"blob"'})
    assert (same.status_code, same.content) == (304, b"")


async def test_by_path_an_answer_takes_nothing_of_the_servers_origin(ports: PortSite, program: Program) -> None:
    told = {
        "Content-Security-Policy": "default-src *", "Set-Cookie": "a=1; Path=/", "Clear-Site-Data": '"*"',
        "Access-Control-Allow-Origin": "*", "Service-Worker-Allowed": "/", "Strict-Transport-Security": "max-age=1",
        "X-Program": "kept",
    }  # fmt: skip
    answer = await ports.http.get(ports.path(program.port, "/told"), params=told)
    assert answer.headers.get_list("content-security-policy") == [
        "default-src *",
        "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts",
    ]
    assert answer.headers["x-program"] == "kept"
    gone = {"set-cookie", "clear-site-data", "access-control-allow-origin", "service-worker-allowed"}
    assert not answer.headers.keys() & (gone | {"strict-transport-security"})
    named = await ports.named(program.port, "GET", "/told", params={"Set-Cookie": "a=1; Domain=localhost; Path=/"})
    assert named.headers["set-cookie"] == "a=1; Path=/"


async def test_a_page_by_path_may_not_use_the_api(ports: PortSite, program: Program) -> None:
    """A sandboxed page has no origin, which a browser says with everything that could do anything."""
    for path in ("/api/v1/tasks", ports.path(program.port)):
        refused = await ports.http.post(path, headers={"Origin": "null"})
        assert (refused.status_code, refused.json()["error"]) == (403, "origin_refused")


PAGES = [
    ("http://{here}", 200),
    ("http://3000-fix--2e--4cogin--5f2.sandbox.localhost", 200),
    ("http://3000-other.sandbox.localhost", 403),
    ("https://evil.example.org", 403),
    ("null", 403),
]


async def test_pages_of_other_machines_may_not_use_one_by_name(ports: PortSite, program: Program) -> None:
    for origin, status in PAGES:
        headers = {"Origin": origin.format(here=ports.name(program.port))}
        assert (await ports.named(program.port, "POST", "/x", headers=headers)).status_code == status


async def test_a_page_of_a_machine_may_not_use_the_api(ports: PortSite, program: Program) -> None:
    refused = await ports.http.get("/api/v1/tasks", headers={"Origin": f"http://{ports.name(program.port)}"})
    assert refused.status_code == 403
    rebound = await ports.http.get("/api/v1/tasks", headers={"Host": f"evil.{DOMAIN}"})
    assert rebound.status_code == 403


REDIRECTS = [
    ("/login?next=/", "{prefix}/login?next=/"),
    ("http://localhost:{port}/x", "{prefix}/x"),
    ("https://example.org/", "https://example.org/"),
    ("//example.org/", "//example.org/"),
    ("beside", "beside"),
]


async def test_redirects(ports: PortSite, program: Program) -> None:
    for to, by_path in REDIRECTS:
        to = to.format(port=program.port)  # noqa: PLW2901
        answer = await ports.http.get(ports.path(program.port, "/elsewhere"), params={"to": to})
        prefix = ports.path(program.port, "")
        assert (answer.status_code, answer.headers["location"]) == (307, by_path.format(prefix=prefix))
        assert (await ports.named(program.port, "GET", "/elsewhere", params={"to": to})).headers["location"] == to


async def test_without_a_slash_the_client_is_sent_to_the_one_with_it(ports: PortSite, program: Program) -> None:
    answer = await ports.http.get(ports.path(program.port, "?a=1"))
    assert (answer.status_code, answer.headers["location"]) == (308, ports.path(program.port, "/?a=1"))


UNREACHED = [
    ("/api/v1/tasks/{task}/ports/1/", 502, "port_refused"),
    ("/api/v1/tasks/{task}/ports/22/", 400, "invalid_parameter"),
    ("/api/v1/tasks/{task}/ports/0/", 400, "invalid_parameter"),
    ("/api/v1/tasks/{task}/ports/70000/", 400, "invalid_parameter"),
    ("/api/v1/tasks/{task}/ports/http/", 400, "invalid_parameter"),
]


async def test_ports_that_nobody_reaches(ports: PortSite) -> None:
    for target, status, code in UNREACHED:
        answer = await ports.http.post(target.format(task=TASK), content=b"x")
        assert (answer.status_code, answer.json()["error"]) == (status, code)


async def test_a_refused_port_by_name(ports: PortSite) -> None:
    answer = await ports.named(1, "GET", "/")
    assert (answer.status_code, answer.json()["error"]) == (502, "port_refused")


NONSENSE = [
    (b"SSH-2.0-OpenSSH\r\n", "another protocol"),
    (b"", "nothing"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "a head without end"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "two lengths"),
    (b"HTTP/1.1 200 OK\r\nX: a\r\n b\x00c\r\n\r\n", "a NUL"),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "another protocol unasked"),
    (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "a status of its own"),
]


async def test_nonsense_is_no_answer(ports: PortSite) -> None:
    for answer, _ in NONSENSE:
        async with answering(saying(answer)) as port:
            for told in (await ports.http.get(ports.path(port)), await ports.named(port, "GET", "/")):
                assert (told.status_code, told.json()["error"]) == (502, "guest_answer_invalid"), told.text


KINDS = [
    (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
    (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
        b"ok",
    ),
]


async def test_answers_of_every_kind_of_body(ports: PortSite) -> None:
    for answer, body in KINDS:
        async with answering(saying(answer)) as port:
            told = await ports.http.get(ports.path(port))
            assert (told.status_code, told.content) == (200, body)


BROKEN = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
]


async def test_an_answer_that_breaks_off_is_seen_to(ports: PortSite) -> None:
    for answer in BROKEN:
        async with answering(saying(answer)) as port:
            with pytest.raises(httpx.RemoteProtocolError):
                await ports.http.get(ports.path(port))


async def test_a_program_that_never_answers(ports: PortSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_ANSWER_SECONDS", 0.3)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    ended = asyncio.Event()
    async with answering(silent) as port:
        answer = await ports.http.get(ports.path(port))
        assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_program_that_refuses_a_body_before_it_is_whole(ports: PortSite) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()

    async with answering(refuse) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports.port)
        writer.write(
            f"PUT {ports.path(port)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n".encode()
        )
        assert b" 413 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
