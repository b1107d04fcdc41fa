"""Followers of one run hear its host and fall back to the bucket, while both are killed in turn: every entry once."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.machines.hosts import Hosts, MachineReference
from api.runs.live_log import HostedLogs
from foundation.errors import (
    BucketUnavailable,
    Conflict,
    InvalidParameter,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
)
from foundation.service.paths import TOLD_BYTES_MOST, log_path, numbered_path
from foundation.service.tokens import Purpose
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.follower import LiveNews, RunLogFollowers
from storage.hosts import HostRoom, say_room
from storage.layout import TASKS, Place
from storage.live.host import HostLogs, open_log
from storage.live.numbered import Ingested, Numbered, as_lines
from storage.redaction import Redactor
from storage.runlog import append_event, read_entries, seal
from storage.segments import LogEntry
from tests.servers import S3Server
from tests.stack_settings import isolated_settings
from tests.stand_ins.host_site import host_site
from worker.service.server import HostService

RUN = TASKS.place("run-1")
LINES = 900
FOLLOWERS = 300
SEED = 11
PATIENCE_SECONDS = 120
SECRETS = {"TOKEN": "tok-12345"}


def source() -> bytes:
    some = random.Random(SEED)
    words = (b"tok-12345", "äöü€".encode(), b"plain text", b'{"a":"\\n"}', b"\xff")
    return b"".join(b"%d %s\n" % (number, some.choice(words)) for number in range(LINES))


def work(settings: Settings) -> None:
    """What a worker does of which followers hear: its service, and one attempt after another to follow the agent."""
    asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    bucket = Bucket(settings)
    nobody: Any = SimpleNamespace(records=list)
    with HostLogs(bucket, settings.home / "live-logs"):
        service = HostService(settings, nobody, bucket)
        await service.start()
        figures = ("cpus", "memory_bytes", "disk_bytes", "free_cpus", "free_memory_bytes", "free_disk_bytes")
        room = HostRoom(
            host=settings.host_name, at=datetime.now(UTC), service=service.address, **dict.fromkeys(figures, 1)
        )
        await asyncio.to_thread(_patiently, lambda: say_room(bucket, room))
        await asyncio.to_thread(_patiently, lambda: _follow_agent(bucket))
        await asyncio.to_thread(_patiently, lambda: append_event(bucket, RUN, {"type": "end"}))
        await asyncio.to_thread(_patiently, lambda: seal(bucket, RUN))
        await service.stop()


def _patiently(do: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return do()
        except BucketUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _follow_agent(bucket: Bucket) -> None:
    some = random.Random()
    output = source()
    with open_log(bucket, RUN, Redactor(SECRETS)) as writer:
        offset = writer.resume()["stdout"]
        while offset < len(output):
            data = output[offset : offset + some.randrange(1, 200)]
            writer.feed("stdout", data, offset)
            offset += len(data)
            writer.flush()
            if some.random() < 0.02:
                append_event(bucket, RUN, {"type": "note", "at": offset})
            time.sleep(0.01)
        writer.close()


class Heard:
    """The hosts' own way, with a count of what came by it."""

    def __init__(self, source: HostedLogs) -> None:
        self._source = source
        self.entries = 0

    async def listen(self, place: Place, after_id: int) -> AsyncGenerator[LiveNews]:
        async with aclosing(self._source.listen(place, after_id)) as coming:
            async for news in coming:
                self.entries += len(news.entries)
                yield news


@contextmanager
def worker(settings: Settings) -> Iterator[BaseProcess]:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(settings,), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


class Clients:
    """Followers of the run through one server: some come late, and some leave and come back behind what they have."""

    def __init__(self, followers: RunLogFollowers, some: random.Random) -> None:
        self._followers = followers
        self.seen: list[list[LogEntry]] = [[] for _ in range(FOLLOWERS)]
        self.tasks = [
            asyncio.create_task(self._read(number, some.randrange(LINES) if number % 10 == 0 else 0))
            for number in range(FOLLOWERS)
        ]

    async def _read(self, number: int, leaving: int) -> None:
        await asyncio.sleep(number / FOLLOWERS)
        seen = self.seen[number]
        if leaving:
            async with aclosing(self._followers.follow(RUN)) as entries:
                async for entry in entries:
                    seen.append(entry)
                    if entry.id >= leaving:
                        break
        async with aclosing(self._followers.follow(RUN, seen[-1].id if seen else 0)) as entries:
            async for entry in entries:
                seen.append(entry)

    async def have(self, share: float) -> None:
        """Wait until one that stays has so much of it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(self.seen[1]) < share * LINES:
            assert time.monotonic() < deadline, f"{len(self.seen[1])} entries came"
            await asyncio.sleep(0.02)


async def test_300_followers_get_every_entry_once_while_host_and_bucket_are_killed_in_turn(tmp_path: Path):
    some = random.Random(SEED)
    with S3Server(tmp_path) as server, ExitStack() as workers:
        bucket = Bucket(server.settings)
        hosts = Hosts(server.settings, bucket)

        async def of(_: str) -> MachineReference:
            return MachineReference(server.settings.host_name, "vm-1")

        heard = Heard(HostedLogs(cast("Any", SimpleNamespace(of=of)), hosts))
        workers.enter_context(worker(server.settings))
        clients = Clients(RunLogFollowers(bucket, heard), some)
        for share, kill_worker in ((0.2, True), (0.5, False), (0.75, True)):
            await clients.have(share + some.random() / 10)
            if kill_worker:
                workers.close()
                workers.enter_context(worker(server.settings))
            else:
                server.kill()
                await asyncio.sleep(some.random())
                await asyncio.to_thread(server.start)
        await asyncio.wait_for(asyncio.gather(*clients.tasks), PATIENCE_SECONDS)
        entries = await asyncio.to_thread(lambda: list(read_entries(bucket, RUN)))
        await hosts.close()
    text = "".join(entry.data for entry in entries if entry.stream == "stdout")
    assert text == Redactor(SECRETS).redact(source()).decode(errors="replace")
    assert [number for number, seen in enumerate(clients.seen) if seen != entries] == []
    # Much of it came from the host, before the bucket had it.
    assert heard.entries > LINES / 3


async def test_a_host_tells_its_logs_to_servers_alone_and_of_what_it_has(tmp_path: Path):
    async with host_site(isolated_settings(tmp_path)) as site:
        name, subject = site.settings.host_name, RUN.prefix.rstrip("/")

        async def asked(subject: str, purpose: Purpose, **params: str) -> bytes:
            path = log_path(RUN.prefix.rstrip("/"))
            async with site.hosts.request(name, subject, purpose, "GET", path, params=params) as response:
                return await anext(response.aiter_raw(), b"")

        with pytest.raises(NotFound):
            await asked(subject, "log")
        with HostLogs(site.bucket, tmp_path / "journals") as logs, logs.open(RUN, Redactor(SECRETS)) as writer:
            for number in range(3):
                writer.event({"n": number, "secret": SECRETS["TOKEN"]})
            with pytest.raises(Unauthorized):
                await asked(subject, "files")
            with pytest.raises(Unauthorized):
                await asked("tasks/another", "log")
            for after in ("x", "-1", "9" * 40):
                with pytest.raises(InvalidParameter):
                    await asked(subject, "log", after=after)
            state, *lines = (await asked(subject, "log", after="1")).splitlines()
            assert state == b'{"live": true}'
            assert [LogEntry.model_validate_json(line).id for line in lines] == [2, 3]
            assert SECRETS["TOKEN"].encode() not in b"".join(lines)


async def test_what_clients_tell_comes_behind_what_the_host_has_told(tmp_path: Path):
    told = ['{"n":1,"text":"a\u2028b"}\n', '{"n":2}\n']
    async with host_site(isolated_settings(tmp_path)) as site:
        name, subject = site.settings.host_name, RUN.prefix.rstrip("/")

        async def tell(content: bytes) -> int:
            request = site.hosts.request(name, subject, "log", "POST", log_path(subject), content=content)
            async with request as response:
                return response.status_code

        with HostLogs(site.bucket, tmp_path / "journals") as logs:
            with logs.open(RUN, Redactor(SECRETS)) as writer, logs.listening(RUN) as listened:
                writer.event({"type": "first"})
                # Told, and not yet stored.
                writer.feed("stdout", b"one\n", 0)
                assert await tell("".join(told).encode()) == HTTPStatus.NO_CONTENT
                writer.feed("stdout", b"two\n", 4)
                writer.close()
                heard = [LogEntry.model_validate_json(line) for line in listened.after(0, 100) or []]
            assert await tell(told[1].encode()) == HTTPStatus.NO_CONTENT
            with pytest.raises(PayloadTooLarge):
                await tell(b"0" * (TOLD_BYTES_MOST + 1))
            entries = list(read_entries(site.bucket, RUN))
            seal(site.bucket, RUN)
            with pytest.raises(Conflict) as refused:
                await tell(told[1].encode())
    assert refused.value.details["reason"] == "closed"
    assert [entry.data for entry in entries][1:] == ["one\n", *told, "two\n", told[1]]
    assert heard == entries[:-1]
    assert [entry.id for entry in entries[:-1]] == [1, 2, 3, 4, 5]


async def test_numbered_entries_come_once_behind_what_the_host_has_told(tmp_path: Path):
    async with host_site(isolated_settings(tmp_path)) as site:
        name, subject = site.settings.host_name, RUN.prefix.rstrip("/")

        async def send(content: str) -> Ingested:
            request = site.hosts.request(name, subject, "log", "POST", numbered_path(subject), content=content.encode())
            async with request as response:
                return Ingested.model_validate_json(await response.aread())

        async def tell(*numbers: int) -> Ingested:
            return await send(
                as_lines([Numbered(number, f'{{"n":{number},"text":"a\u2028b"}}\n') for number in numbers])
            )

        with HostLogs(site.bucket, tmp_path / "journals") as logs:
            with logs.open(RUN, Redactor(SECRETS)) as writer, logs.listening(RUN) as listened:
                writer.event({"type": "first"})
                writer.feed("stdout", b"one\n", 0)
                assert await tell(1, 2) == Ingested(accepted=2, last=2)
                writer.feed("stdout", b"two\n", 4)
                assert await tell(2, 3) == Ingested(accepted=1, duplicate=1, last=3)
                for gap, last in (((5,), 3), ((4, 6), 4)):
                    with pytest.raises(Conflict) as refused:
                        await tell(*gap)
                    assert refused.value.details["last_accepted_seq"] == last
                writer.close()
                heard = [LogEntry.model_validate_json(line) for line in listened.after(0, 100) or []]
            # Where no writer is open any more, too.
            assert await tell(4, 5) == Ingested(accepted=1, duplicate=1, last=5)
            for wrong in ("x {}\n", "{}\n", "-1 {}\n"):
                with pytest.raises(InvalidParameter):
                    await send(wrong)
            entries = list(read_entries(site.bucket, RUN))
            seal(site.bucket, RUN)
            with pytest.raises(Conflict) as closed:
                await tell(6)
    assert closed.value.details["reason"] == "closed"
    assert heard == entries[:-1]
    assert [entry.id for entry in entries[:-1]] == list(range(1, 8))
    assert [entry.offset for entry in entries if entry.stream == "told"] == [1, 2, 3, 4, 5]
