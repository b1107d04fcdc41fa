"""Runs of which clients tell, over real Temporal and a real bucket: local ones, and those that are executed here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from api.temporal.client import Engine
from api.told.appending import ClientLogs
from api.told.core import ToldRun, ToldRuns
from foundation.errors import Conflict, InvalidParameter, PayloadTooLarge, TaskNotFound
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.live.host import HostLogs
from storage.live.numbered import Numbered
from storage.redaction import Redactor
from storage.runlog import read_entries
from storage.segments import chain_end
from tests.api_site import ApiSite, until
from worker.service.server import HostService
from workflows.history import Share
from workflows.messages import Lease
from workflows.runs.requests import ReserveRequest
from workflows.told.record import Change
from workflows.told.states import LocalState

CREATED, QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = LocalState
ENDED = {COMPLETED, FAILED, CANCELLED}


def told_of(site: ApiSite) -> ToldRuns:
    core: ToldRuns = site.app.services.told
    return core


async def local(core: ToldRuns, at: LocalState = QUEUED, **told: Any) -> str:
    run_id = str(uuid4())
    await core.create(run_id, state=QUEUED if at in ENDED else at, name="a run", told=Change(**told))
    if at in ENDED:
        await core.tell(run_id, Change(enter=at))
    return run_id


async def lines(site: ApiSite, run_id: str) -> list[Any]:
    def read() -> list[Any]:
        entries = read_entries(site.bucket, TASKS.place(run_id))
        return [json.loads(entry.data) for entry in entries if entry.stream == "told"]

    return await asyncio.to_thread(read)


async def until_sealed(site: ApiSite, run_id: str) -> None:
    async def sealed() -> bool:
        return await asyncio.to_thread(site.bucket.get, TASKS.place(run_id).seal_key) is not None

    await until(sealed, "the end of the log")


# For each state, what each told state does to a run: it comes there (+), stays as it is (=), or is refused (-).
TABLE = {
    #            created queued running completed failed cancelled
    CREATED: "   =       +      +       +         +      +",
    QUEUED: "    -       =      +       +         +      +",
    RUNNING: "   -       -      =       +         +      +",
    COMPLETED: " =       =      =       =         =      =",
    FAILED: "    =       =      =       =         =      =",
    CANCELLED: " =       =      =       =         =      =",
}


async def test_every_state_takes_every_told_state_as_the_table_says(site: ApiSite) -> None:
    core = told_of(site)
    rows = {before: zip(LocalState, row.split(), strict=True) for before, row in TABLE.items()}
    cells = [(before, told, sign) for before, row in rows.items() for told, sign in row]
    assert len(cells) == 36

    async def tell(before: LocalState, told: LocalState, sign: str) -> str:
        run_id = await local(core, before)
        was = await core.look(run_id)
        change = Change(enter=told, stage="told")
        if sign == "-":
            with pytest.raises(Conflict, match="does not go back"):
                await core.tell(run_id, change)
            assert await core.look(run_id) == was
            return ""
        now = await core.tell(run_id, change)
        if before in ENDED:
            # Neither the state nor what came with it.
            return "" if now == was else f"{before} took {told}"
        assert now.told.stage == "told"
        assert now.local is not None
        assert (now.local.ended_at is not None) == (told in ENDED)
        expected = told if sign == "+" else before
        return "" if now.status.state is expected else f"{before} to {told}: {now.status.state}"

    async with site.worker():
        wrong = []
        for begin in range(0, len(cells), 12):
            wrong += await asyncio.gather(*(tell(*cell) for cell in cells[begin : begin + 12]))
    assert [each for each in wrong if each] == []


async def test_a_record_is_merged_key_by_key_and_every_change_has_a_later_time(site: ApiSite) -> None:
    core = told_of(site)
    async with site.worker():
        run_id = await local(core, state={"a": 1, "b": {"x": 1}}, branch="main")
        seen: list[ToldRun] = [await core.look(run_id)]
        for change in (
            Change(state={"b": {"y": 2}, "c": 3}, remove_keys=["a", "none"]),
            Change(output={"pr_url": "u"}),
            Change(output={"commit_sha": "c"}),
            Change(output=[1, 2]),
            Change(cleared=["branch", "output"]),
            Change(error_message="x" * 10_000),
        ):
            seen += [await core.tell(run_id, change)]
        again = await core.tell(run_id, Change(state={"c": 3}))
    assert [run.told.state for run in seen[:2]] == [{"a": 1, "b": {"x": 1}}, {"b": {"y": 2}, "c": 3}]
    assert [run.told.output for run in seen[2:6]] == [{"pr_url": "u"}, {"pr_url": "u", "commit_sha": "c"}, [1, 2], None]
    assert [run.told.branch for run in seen[4:6]] == ["main", None]
    assert len(seen[6].told.error_message or "") == 2000
    times = [run.local.changed_at for run in seen if run.local]
    assert times == sorted(set(times))
    assert again == seen[-1]


async def test_clients_that_tell_at_once_lose_nothing_of_one_another(site: ApiSite) -> None:
    core = told_of(site)
    async with site.worker():
        run_id = await local(core)
        await asyncio.gather(*(core.tell(run_id, Change(state={f"k{n}": n})) for n in range(40)))
        assert (await core.look(run_id)).told.state == {f"k{n}": n for n in range(40)}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (Change(output={"x": "y" * 70_000}), PayloadTooLarge),
        (Change(state={"x": float("nan")}), InvalidParameter),
        (Change(output=json.loads("[" * 80 + "]" * 80)), InvalidParameter),
    ],
)
async def test_what_no_reader_could_hold_is_refused(site: ApiSite, change: Change, error: Any) -> None:
    core = told_of(site)
    run_id = await local(core)
    with pytest.raises(error):
        await core.tell(run_id, change)
    with pytest.raises(TaskNotFound):
        await core.tell(str(uuid4()), Change(stage="x"))


async def test_text_that_is_none_is_kept_readable(site: ApiSite) -> None:
    core = told_of(site)
    async with site.worker():
        run_id = await local(core)
        run = await core.tell(run_id, Change(stage="a\ud800\x00", state={"k\udfff": "\x00"}))
    assert run.told.stage == "a?\x00"
    assert run.told.state == {"k?": "\x00"}


async def test_two_clients_append_two_thousand_entries_each_at_once(site: ApiSite) -> None:
    core = told_of(site)
    async with site.worker():
        run_id = await local(core)

        async def client(name: str) -> None:
            for number in range(0, 2000, 40):
                assert await core.append(run_id, [{"c": name, "n": n} for n in range(number, number + 40)])

        await asyncio.gather(client("a"), client("b"))
        found = await lines(site, run_id)
        assert len(found) == 4000
        for name in "ab":
            assert [entry["n"] for entry in found if entry["c"] == name] == list(range(2000))
        await core.tell(run_id, Change(enter=COMPLETED))
        assert not await core.append(run_id, [{"late": True}])
        await until_sealed(site, run_id)
        assert not await core.append(run_id, [{"late": True}])
        assert len(await lines(site, run_id)) == 4000
    # Without a worker, and for dialects of runs that are executed here, which know nothing of it.
    assert (await core.look(run_id)).ended
    assert (await site.http.get(f"/api/v1/tasks/{run_id}")).status_code == 404


async def test_numbered_entries_are_stored_once_whoever_sends_them_again(site: ApiSite) -> None:
    core = told_of(site)
    services = site.app.services
    logs = ClientLogs(site.bucket)
    other = ToldRuns(Engine(site.settings), site.bucket, services.core, core.index, logs, services.hosts)

    def numbered(*numbers: int) -> list[Numbered]:
        return [Numbered(number, f'{{"n":{number}}}\n') for number in numbers]

    async with site.worker():
        run_id = await local(core)
        assert (await core.ingest(run_id, [])).last == 0
        first = await core.ingest(run_id, numbered(1, 2, 3))
        assert (first.accepted, first.duplicate, first.last) == (3, 0, 3)
        await core.append(run_id, [{"beside": True}])
        again = await other.ingest(run_id, numbered(2, 3, 4, 5))
        assert (again.accepted, again.duplicate, again.last) == (2, 2, 5)
        # This server's view of the log is old; what it says of gaps is not.
        assert (await core.ingest(run_id, numbered(6))).accepted == 1
        with pytest.raises(Conflict) as gap:
            await other.ingest(run_id, numbered(7, 9))
        assert gap.value.details["last_accepted_seq"] == 7
        with pytest.raises(Conflict) as gap:
            await core.ingest(run_id, numbered(9))
        assert gap.value.details["last_accepted_seq"] == 7
        assert (await other.ingest(run_id, [])).last == 7
        assert [entry["n"] for entry in await lines(site, run_id) if "n" in entry] == [1, 2, 3, 4, 5, 6, 7]
        await core.tell(run_id, Change(enter=FAILED))
        await until_sealed(site, run_id)
        assert (await core.ingest(run_id, [])).last == 7
        late = await other.ingest(run_id, numbered(8))
        assert (late.accepted, late.duplicate) == (0, 1)


@asynccontextmanager
async def host_of(site: ApiSite, journals: Path) -> AsyncIterator[HostLogs]:
    """The service of this home's host, with a bucket of its own as in another process."""
    nobody: Any = SimpleNamespace(records=list)
    bucket = Bucket(site.settings)
    with HostLogs(bucket, journals) as logs:
        service = HostService(site.settings, nobody, bucket)
        await service.start()
        try:
            yield logs
        finally:
            await service.stop()


async def test_what_is_told_of_a_run_comes_through_the_host_that_follows_it(site: ApiSite, tmp_path: Path) -> None:
    core = told_of(site)

    def numbered(*numbers: int) -> list[Numbered]:
        return [Numbered(number, f'{{"n":{number}}}\n') for number in numbers]

    def leased(request: ReserveRequest) -> Lease:
        host, queue = site.settings.host_name, site.settings.task_queue
        return Lease(machine_id=request.machine_id, host=host, task_queue=queue)

    async with site.worker() as steps:
        steps.instead["reserve"] = leased
        run_id = await site.submit()
        await steps.agent_running.wait()
        place = TASKS.place(run_id)
        async with host_of(site, tmp_path) as logs:
            with logs.open(place, Redactor({})) as writer, logs.listening(place) as listened:
                await asyncio.to_thread(writer.event, {"type": "first"})
                begun = (await asyncio.to_thread(chain_end, site.bucket, place)).last
                assert (await core.ingest(run_id, numbered(1, 2))).accepted == 2
                assert await core.append(run_id, [{"n": "between"}])
                again = await core.ingest(run_id, numbered(2, 3))
                with pytest.raises(Conflict) as gap:
                    await core.ingest(run_id, numbered(5))
                heard = [json.loads(line) for line in listened.after(begun, 100) or []]
        assert (again.accepted, again.duplicate, again.last) == (1, 1, 3)
        assert gap.value.details["last_accepted_seq"] == 3
        # It has told all of them, under the ids that they have in the bucket.
        assert [entry["id"] for entry in heard] == list(range(begun + 1, begun + 5))
        assert [json.loads(entry["data"])["n"] for entry in heard] == [1, 2, "between", 3]
        # The host is away.
        last = await core.ingest(run_id, numbered(3, 4))
        assert (last.accepted, last.duplicate, last.last) == (1, 1, 4)
        assert [entry["n"] for entry in await lines(site, run_id)] == [1, 2, "between", 3, 4]


async def test_an_output_that_fits_its_schema_ends_the_run_and_another_one_does_not(site: ApiSite) -> None:
    core = told_of(site)
    schema = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "integer"}}}
    async with site.worker():
        run_id = await local(core)
        assert (await core.set_output(run_id, {"draft": 1})).told.output == {"draft": 1}
        assert (await core.set_output(run_id, {"other": 2})).told.output == {"other": 2}
        with pytest.raises(InvalidParameter, match="Output validation error"):
            await core.set_output(run_id, {"answer": "much"}, schema)
        run = await core.set_output(run_id, {"answer": 42}, schema)
        assert (run.status.state, run.told.output) == (COMPLETED, {"answer": 42})
        assert (await core.set_output(run_id, {"answer": 43}, schema)).told.output == {"answer": 42}


async def test_a_run_that_is_told_very_often_goes_on_with_a_new_history(
    site: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.history.RENEWED", Share(3, 20_000, 2**20))
    core = told_of(site)
    async with site.worker():
        run_id = await local(core)
        first = await core._local.describe(run_id)
        for number in range(10):
            run = await core.tell(run_id, Change(state={f"k{number}": number}, stage=str(number)))
            assert run.told.stage == str(number)
        assert len(run.told.state) == 10
        last = await core._local.describe(run_id)
        assert first is not None
        assert last is not None
        assert last.run_id != first.run_id
        await core.index.look()
        rows = [row for row in core.index.rows() if row.id == run_id]
        assert [row.state for row in rows] == ["queued"]
        assert (await core.tell(run_id, Change(enter=COMPLETED))).ended


async def test_a_run_that_is_executed_here_is_told_too_and_ends_when_a_client_says_so(site: ApiSite) -> None:
    core = told_of(site)
    async with site.worker() as steps:
        run_id = await site.submit()
        await steps.agent_running.wait()
        assert await core.append(run_id, [{"from": "a client"}])
        run = await core.tell(run_id, Change(enter=RUNNING, branch="feature", output={"pr_url": "u"}))
        assert (run.local, run.told.branch, run.ended) == (None, "feature", False)
        ended = await core.tell(run_id, Change(enter=COMPLETED, output={"done": True}))
        await site.until_state(run_id, "completed")
        ended = await core.look(run_id)
        assert ended.told.output == {"pr_url": "u", "done": True}
        assert (await core.tell(run_id, Change(output={"late": 1}))).told == ended.told
    log = (await site.http.get(f"/api/v1/tasks/{run_id}/logs", headers={"Accept": "application/x-ndjson"})).text
    assert '"told"' in log
    assert "a client" in log
