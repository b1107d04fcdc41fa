"""The egress proxy at its real socket: what guests ask of it on handed connections, and local origins behind it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from foundation.errors import MachineError, MachineNotFound
from tests.egress_site import MACHINE, ORIGIN, connect, connect_without_reading, connecting, outbound, serving
from tests.escapes.attempts import client_hello
from tests.waiting import until
from worker.egress import egress as egress_module
from worker.egress.passage import EgressLimits
from workflows.specs.wire import NetworkMode, NetworkPolicy

OTHER = "vm-00000000000000bb"


async def ask(home: Path, sent: bytes, machine: str = MACHINE) -> bytes:
    """The whole answer to what is sent on a new connection."""
    reader, writer = await connect(home, machine)
    writer.write(sent)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """The port of an origin that sends back what it gets, and ends when its client has."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"end")
        writer.close()

    server = await asyncio.start_server(serve, ORIGIN, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tunnel_leads_to_an_allowed_host_and_carries_half_closes(home):
    async with serving(home) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        answer = await ask(home, connecting("allowed.example.org", port) + b"\x00hello")
        assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n\x00helloend"
        use = egress.use(MACHINE)
        assert (use.allowed, use.blocked, use.sent_bytes, use.received_bytes) == (1, 0, 6, 9)
        assert [(each.host, each.port, each.allowed) for each in use.hosts] == [("allowed.example.org", port, 1)]
        assert [(each.verdict, each.count) for each in egress.drain(MACHINE)] == [("allowed", 1)]
        assert egress.drain(MACHINE) == []


async def test_refusal_says_what_blocked_it_in_the_reason_phrase_and_in_the_body(home):
    async with serving(home) as egress:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        head, _, body = (await ask(home, connecting("other.example.org", 443))).partition(b"\r\n\r\n")
        sentence = b"blocked by the task's network policy: other.example.org"
        assert head.splitlines()[0] == b"HTTP/1.1 403 " + sentence
        assert b"Taskyard-Verdict: blocked" in head
        assert body == sentence + b"\n"
        (told,) = egress.drain(MACHINE)
        assert (told.host, told.port, told.verdict, told.reason) == (
            "other.example.org",
            443,
            "blocked",
            sentence.decode(),
        )


@pytest.mark.parametrize("policy", [None, NetworkPolicy(), NetworkPolicy(hosts=["allowed.example.org"])])
@pytest.mark.parametrize("machine", [MACHINE, "vm-00000000000000ff"])
async def test_machine_that_is_isolated_or_unknown_reaches_nothing(home, policy, machine):
    async with serving(home) as egress:
        if policy and machine == MACHINE:
            egress.set_policy(machine, policy)
        assert b" 403 " in await ask(home, connecting("allowed.example.org", 443), machine)
        with pytest.raises(MachineNotFound):
            egress.set_policy("vm-00000000000000ff", NetworkPolicy())


async def test_policy_outlives_the_worker_and_so_do_the_counts(home):
    async with echo() as port:
        async with serving(home) as egress:
            egress.set_policy(MACHINE, outbound("allowed.example.org"))
            await ask(home, connecting("allowed.example.org", port) + b"\x00")
        async with serving(home) as egress:
            assert egress.policy(MACHINE) == outbound("allowed.example.org")
            assert egress.use(MACHINE).allowed == 1
            assert (await ask(home, connecting("allowed.example.org", port))).startswith(b"HTTP/1.1 200 ")
            assert egress.use(MACHINE).allowed == 2


async def test_a_policy_that_is_not_in_force_in_time_is_no_success(home, monkeypatch):
    monkeypatch.setattr(egress_module, "_CUT_SECONDS", 0.01)
    async with serving(home) as egress:
        with ThreadPoolExecutor() as pool, pytest.raises(MachineError, match="set it again"):
            # The proxy's own loop stands still meanwhile.
            pool.submit(egress.set_policy, MACHINE, outbound("allowed.example.org")).result()
        assert egress.policy(MACHINE) == outbound("allowed.example.org")


async def test_counts_that_a_full_disk_did_not_take_are_written_when_it_has_room(home, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(home) as egress:
        await ask(home, connecting("allowed.example.org", 443))
        with monkeypatch.context() as patched:
            patched.setattr(egress_module, "write_whole", full)
            egress._save()
    async with serving(home) as egress:
        assert egress.use(MACHINE).blocked == 1


async def test_a_body_that_does_not_come_ends_its_request(home):
    async with serving(home, EgressLimits(idle_seconds=0.05)) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        host = f"allowed.example.org:{port}"
        reader, writer = await connect(home)
        writer.write(f"POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 the request's body")
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nno length",
        b"no answer",
    ],
)
async def test_an_answer_that_breaks_off_adds_nothing_to_the_workers_log(home, caplog, answer):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, ORIGIN, 0)
    async with server, serving(home) as egress:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        host = f"allowed.example.org:{server.sockets[0].getsockname()[1]}"
        with suppress(ConnectionError):
            await ask(home, f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await until(lambda: not egress._machine(MACHINE).connections, "the connection's end")
    assert caplog.messages == []


async def test_change_of_policy_cuts_what_it_no_longer_allows(home):
    async with serving(home) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org", "other.example.org"))
        opened = []
        for name in ("allowed.example.org", "other.example.org"):
            reader, writer = await connect(home)
            writer.write(connecting(name, port) + b"\x00")
            assert b"200" in await reader.readuntil(b"\x00")
            opened.append((reader, writer))
        await asyncio.to_thread(egress.set_policy, MACHINE, outbound("other.example.org"))
        assert await opened[0][0].read() == b""
        opened[1][1].write(b"still")
        assert await opened[1][0].readexactly(5) == b"still"
        assert "blocked" in {each.verdict for each in egress.drain(MACHINE)}
        for _, writer in opened:
            writer.close()


async def test_name_that_leads_to_a_private_address_is_blocked_and_an_unknown_one_fails(home):
    async with serving(home) as egress:
        egress.set_policy(MACHINE, outbound("*.example.org"))
        private = await ask(home, connecting("private.example.org", 443))
        assert b" 403 " in private
        assert b"10.1.2.3" in private
        unknown = await ask(home, connecting("unknown.example.org", 443))
        assert unknown.startswith(b"HTTP/1.1 502 unknown.example.org does not exist")
        assert b"Taskyard-Verdict: failed" in unknown


@pytest.mark.parametrize(
    ("protocol", "host", "port", "said"),
    [("udp", "192.0.2.1", 53, "udp 192.0.2.1:53"), ("icmp", "192.0.2.1", 0, "icmp 192.0.2.1")],
)
async def test_report_of_the_guest_is_logged_and_never_connected(home, protocol, host, port, said):
    async with serving(home) as egress:
        egress.set_policy(MACHINE, NetworkPolicy(mode=NetworkMode.FULL))
        header = f"\r\nTaskyard-Protocol: {protocol}\r\n\r\n".encode()
        sent = connecting(host, port).replace(b"\r\n\r\n", header)
        assert b" 403 " in await ask(home, sent)
        (told,) = egress.drain(MACHINE)
        assert f"{said}, says the guest" in told.reason


async def test_request_in_pieces_never_goes_on_whole(home):
    async with serving(home, EgressLimits(held_seconds=0.01)) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        reader, writer = await connect(home)
        writer.write(connecting("allowed.example.org", port) + b"GET")
        assert (await reader.readuntil(b"GET")).endswith(b"\r\nGET")
        writer.write(b" / HTTP/1.1\r\nHost: other.example.org\r\n\r\n")
        assert await reader.read() == b""
        assert "a request came in pieces" in egress.drain(MACHINE, last=True)[-1].reason
        writer.close()


async def test_first_message_of_tls_has_to_come_whole_however_its_bytes_come(home):
    async with serving(home, EgressLimits(head_seconds=0.1)) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        reader, writer = await connect(home)
        writer.write(connecting("allowed.example.org", port))
        refused = asyncio.create_task(reader.readuntil(bytes.fromhex("15 03 01 00 02 02 31")))
        for byte in client_hello(["allowed.example.org"]):
            writer.write(bytes([byte]))
            if (await asyncio.wait({refused}, timeout=0.005))[0]:
                break
        await asyncio.wait_for(refused, 10)
        writer.close()


async def test_connections_end_with_their_machine_and_with_the_proxy(home):
    async with echo() as port:
        async with serving(home) as egress:
            egress.set_policy(MACHINE, outbound("allowed.example.org"))
            reader, writer = await connect(home)
            writer.write(connecting("allowed.example.org", port))
            await until(lambda: egress.use(MACHINE).allowed == 1, "the tunnel to be open")
        assert (await reader.read()).endswith(b"\r\n\r\n")
        writer.close()


async def test_name_is_looked_up_once_and_what_was_checked_is_connected_to(home):
    asked = []
    answers = {"rebinding.example.org": [["10.1.2.3", ORIGIN], ["127.0.0.1"]]}

    class Rebinding(dict):
        def __contains__(self, name):
            return name in answers

        def __getitem__(self, name):
            asked.append(name)
            return answers[name].pop(0)

    async with serving(home, names=Rebinding()) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("*.example.org"))
        answer = await ask(home, connecting("rebinding.example.org", port) + b"\x00")
        assert answer.endswith(b"\x00end")
        assert len(asked) == 1
        assert b"127.0.0.1, is" not in (refused := await ask(home, connecting("rebinding.example.org", port)))
        assert refused.startswith(b"HTTP/1.1 403 ")


async def test_address_that_refuses_gives_way_to_the_next_one(home):
    names = {"allowed.example.org": ["127.0.4.77", ORIGIN]}
    async with serving(home, names=names) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        assert (await ask(home, connecting("allowed.example.org", port) + b"\x00")).endswith(b"\x00end")
        refused = await ask(home, connecting("allowed.example.org", 1))
        assert refused.startswith(b"HTTP/1.1 502 allowed.example.org:1 refuses connections")
        assert egress.use(MACHINE).blocked == 0


async def test_connections_of_one_machine_take_no_other_ones_place(home):
    async with serving(home, EgressLimits(for_each_machine=2)) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        egress.set_policy(OTHER, outbound("allowed.example.org"))
        opened = [await connect(home) for _ in range(2)]
        for reader, writer in opened:
            writer.write(connecting("allowed.example.org", port))
            await reader.readuntil(b"\r\n\r\n")
        refused, writer = await connect(home)
        assert (await refused.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert (await ask(home, connecting("allowed.example.org", port), OTHER)).startswith(b"HTTP/1.1 200 ")
        for _, writer in opened:
            writer.close()


async def test_reader_that_stalls_stops_the_other_side_and_costs_what_one_turn_reads(home):
    sent = 0
    stalled = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2 if sent else 5):
                        await writer.drain()
                        sent += 65536
                        continue
                stalled.set()
                await writer.drain()

    server = await asyncio.start_server(serve, ORIGIN, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, serving(home) as egress, echo() as echoing:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        mine = await connect_without_reading(home)
        with mine:
            mine.send(connecting("allowed.example.org", port))
            await asyncio.wait_for(stalled.wait(), 30)
            # What lies in sockets, and one turn, on its way to a guest that reads nothing.
            assert egress.use(MACHINE).received_bytes < 2**21
            (machine,) = egress._machines.values()
            # Others go on meanwhile.
            assert (await ask(home, connecting("allowed.example.org", echoing) + b"\x00")).endswith(b"end")
            assert len(machine.connections) == 1


async def test_byte_limit_cuts_what_is_open_and_refuses_what_comes(home):
    async with serving(home, egress_byte_limit="1K") as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        assert b"end" not in await ask(home, connecting("allowed.example.org", port) + bytes(4096))
        assert b"its limit" in await ask(home, connecting("allowed.example.org", port))


async def test_idle_tunnel_is_closed(home):
    async with serving(home, EgressLimits(idle_seconds=0.05)) as egress, echo() as port:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        reader, writer = await connect(home)
        writer.write(connecting("allowed.example.org", port) + b"\x00")
        assert (await reader.read(-1)).endswith(b"\x00")
        writer.close()


async def test_server_that_speaks_first_is_heard(home):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-example\r\n")
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, ORIGIN, 0)
    async with server, serving(home) as egress:
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        reader, writer = await connect(home)
        writer.write(connecting("allowed.example.org", server.sockets[0].getsockname()[1]))
        assert (await reader.readuntil(b"example\r\n")).endswith(b"SSH-2.0-example\r\n")
        writer.write(b"SSH-2.0-guest\r\n")
        assert await reader.read() == b"SSH-2.0-guest\r\n"
        writer.close()


async def test_policy_that_cannot_be_read_lets_nothing_through(home):
    (home / "machines" / MACHINE / "network.json").write_text("{")
    async with serving(home) as egress:
        assert egress.policy(MACHINE) is None
        assert (await ask(home, connecting("allowed.example.org", 443))).startswith(b"HTTP/1.1 403 ")


async def test_large_bodies_pass_both_ways_in_the_clear_as_they_come(home):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Two: a\r\nX-Two: b\r\n\r\n")
        while (line := await reader.readline()) not in {b"0\r\n", b""}:
            size = int(line, 16)
            chunk = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n" % size + chunk)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, ORIGIN, 0)
    async with server, serving(home) as egress:
        port = server.sockets[0].getsockname()[1]
        egress.set_policy(MACHINE, outbound("allowed.example.org"))
        reader, writer = await connect(home)
        host = f"allowed.example.org:{port}"
        writer.write(f"POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        writer.write(b"1\r\na\r\n")
        size = 2**20

        async def send() -> None:
            writer.write(b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
            await writer.drain()

        sending = asyncio.create_task(send())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.lower().count(b"x-two: ") == 2
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.read(2**16)
        await sending
        assert body.count(b"\x00") == size
        writer.close()
