"""The index of runs: whatever happened between two looks, and to clocks and the store meanwhile, it shows the store."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict

import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from api.native import views
from api.runs.listing import TaskQuery, find
from api.runs.recorded import TASK_RUNS
from api.temporal import index as index_module
from api.temporal.index import RunIndex
from foundation.errors import EngineUnavailable
from tests.stand_ins.visibility import StoredRun, VisibilityStore
from workflows.runs.states import TaskState

STATES = list(TaskState)
SECONDS = st.one_of(st.sampled_from([0.0, 0.4, 1.0, 4.0, 11.0, 59.0, 60.0]), st.floats(0, 4000))

# What happens: a name, and a number that chooses the run or says how much.
EVENTS = st.one_of(
    st.tuples(st.just("start"), st.just(0)),
    st.tuples(st.just("enter"), st.integers(0, 99)),
    st.tuples(st.just("end"), st.integers(0, 99)),
    st.tuples(st.just("pass whole"), st.just(0)),
    st.tuples(st.just("forget"), st.integers(0, 99)),
    st.tuples(st.just("wait"), SECONDS),
    st.tuples(st.just("jump"), st.floats(-900, 900)),
    st.tuples(st.just("lag"), st.sampled_from([0.0, 0.0, 2.0, 30.0, 300.0])),
    st.tuples(st.just("fail"), st.integers(1, 4)),
)
# A look, with what happens while it is under way.
LOOKS = st.tuples(st.just("look"), st.lists(EVENTS, max_size=4))
COURSES = st.lists(st.one_of(EVENTS, EVENTS, LOOKS), max_size=60)


class Course:
    """A store and an index over it, to which things happen."""

    def __init__(self) -> None:
        self.store = VisibilityStore()
        self.index = RunIndex(self.store, TASK_RUNS, clock=lambda: self.store.now)
        self.shown: defaultdict[str, list[StoredRun | None]] = defaultdict(list)
        self.store.on_change = self._remember
        self.number = 0
        self.forgot = False
        self.came_late = False

    def happen(self, what: str, how_much: float) -> None:
        store = self.store
        if what == "start":
            self.number += 1
            store.start(f"t{self.number}")
        elif what == "pass whole":
            self.number += 1
            store.enter(store.start(f"t{self.number}").run_id, TaskState.COMPLETED)
        elif what in {"enter", "end"} and store.open:
            run_id = store.open[int(how_much) % len(store.open)]
            later = STATES[STATES.index(store._true[run_id].state) + 1 :]
            store.enter(run_id, later[0] if what == "enter" else later[-1 - int(how_much) % 4])
        elif what == "forget" and store.ended:
            self.forgot = True
            store.forget(store.ended[int(how_much) % len(store.ended)])
        elif what == "wait":
            store.wait(how_much)
        elif what == "jump":
            store.offset += how_much
        elif what == "lag":
            store.lag = how_much
        elif what == "fail":
            store.failing = int(how_much)

    async def look(self, meanwhile: list[tuple[str, float]]) -> None:
        """Look; whatever is shown then must have been in the store while the look lasted, and so must what is not."""
        store = self.store
        # Answers may be as old as one look that all share.
        store.wait(index_module._SLOW_LOOK_SECONDS)
        self.shown.clear()
        before = dict(store.runs)
        for event in meanwhile:
            store.meanwhile.append(lambda event=event: self.happen(*event))
        try:
            await self.index.look()
            if self.forgot and self.came_late:
                # Such pairs are found when all is read anew.
                store.meanwhile.clear()
                store.failing = 0
                self.shown.clear()
                before = dict(store.runs)
                await self.index._reread()
        except EngineUnavailable:
            return
        finally:
            store.meanwhile.clear()
            store.failing = 0
        self.forgot = self.came_late = False
        rows = {row.run_id: (row.state, row.closed) for row in self.index._rows.values()}
        for run_id in {*rows, *before, *store.runs}:
            possible = [before.get(run_id), *self.shown[run_id]]
            assert rows.get(run_id) in [run and (run.state, run.closed) for run in possible]
        ids = {row.run_id for row in self.index.rows()}
        listed = find(self.index, TaskQuery(limit=1000))
        assert (len(listed.rows), listed.total) == (len(ids), len(ids))
        assert ids == {row.run_id for row in self.index.ordered("created_at", lambda row: row.created_at)}

    def _remember(self, run_id: str) -> None:
        run = self.store.runs.get(run_id)
        if run is not None and run.closed is not None and not self.shown_before(run_id):
            self.came_late = True
        self.shown[run_id].append(run)

    def shown_before(self, run_id: str) -> bool:
        return run_id in self.index._rows


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are many here, so that every way of reading them is gone."""
    monkeypatch.setattr(index_module, "_SPAN_ROWS", 2)
    monkeypatch.setattr(index_module, "_BATCH_RUNS", 2)
    monkeypatch.setattr(index_module, "_PAUSE_ROWS", 2)


# A run that the store forgets while all is read anew beside the looks: pages that were read before still have it.
FORGOTTEN_BESIDE = [
    *[("start", 0)] * 5,
    *[("pass whole", 0)] * 3,
    *[("look", []), ("wait", 599.0), ("look", [("pass whole", 0)]), ("forget", 3)],
]


@settings(max_examples=500)
@given(COURSES)
@example(FORGOTTEN_BESIDE)
def test_an_answer_shows_what_the_store_showed_while_it_was_made(course: list[tuple]) -> None:
    note(repr(course))

    async def run() -> None:
        there = Course()
        for what, more in [*course, ("look", [])]:
            if what == "look":
                await there.look(more)
            else:
                there.happen(what, more)
        await there.index.close()

    asyncio.run(run())


async def test_whoever_has_not_asked_for_long_is_told_of_all_that_happened_since() -> None:
    store = VisibilityStore()
    index = RunIndex(store, TASK_RUNS, clock=lambda: store.now)
    early = store.start("early")
    await index.look()
    store.wait(30)
    store.enter(early.run_id, TaskState.FAILED)
    late = store.start("late")
    store.enter(late.run_id, TaskState.RUNNING)
    store.wait(90)
    await index.look()
    assert {row.id: row.state for row in index.rows()} == {"early": TaskState.FAILED, "late": TaskState.RUNNING}


async def test_a_store_that_was_away_is_told_of_and_then_shown_whole() -> None:
    store = VisibilityStore()
    index = RunIndex(store, TASK_RUNS, clock=lambda: store.now)
    run = store.start("one")
    await index.look()
    store.enter(run.run_id, TaskState.RUNNING)
    # Each request of the look may be the one that fails.
    for answered in range(4):
        store.wait(60)
        store.meanwhile.extend([lambda: None] * answered)
        store.meanwhile.append(lambda: setattr(store, "failing", 1))
        with pytest.raises(EngineUnavailable):
            await index.look()
    store.wait(60)
    store.enter(run.run_id, TaskState.COMPLETED)
    await index.look()
    assert index.counts() == {TaskState.COMPLETED: 1}


async def test_what_began_first_leaves_the_lists_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MOST_ROWS", 50)
    store = VisibilityStore()
    index = RunIndex(store, TASK_RUNS, clock=lambda: store.now)
    open_one = store.start("open")
    for number in range(80):
        store.wait(1)
        store.enter(store.start(f"t{number:02d}").run_id, TaskState.COMPLETED)
        if number % 7 == 0:
            await index.look()
    store.wait(10)
    await index.look()
    kept = sorted(row.id for row in index.rows())
    assert len(kept) <= 50
    assert kept == ["open", *(f"t{number:02d}" for number in range(80 - len(kept) + 1, 80))]
    # What has left is no reason to read anything again.
    store.requests = 0
    store.wait(10)
    await index.look()
    assert store.requests <= 5
    store.enter(open_one.run_id, TaskState.FAILED)
    store.wait(10)
    await index.look()
    assert index.counts()[TaskState.FAILED] == 1


async def test_few_requests_find_the_one_run_among_many_that_was_forgotten() -> None:
    store = VisibilityStore()
    index = RunIndex(store, TASK_RUNS, clock=lambda: store.now)
    for number in range(200):
        store.wait(1)
        store.enter(store.start(f"t{number}").run_id, TaskState.COMPLETED)
    await index.look()
    store.forget("t31#0")
    store.wait(10)
    store.requests = 0
    await index.look()
    assert "t31" not in {row.id for row in index.rows()}
    assert store.requests < 40


async def test_rows_hold_what_a_list_answers_and_no_more() -> None:
    store = VisibilityStore()
    index = RunIndex(store, TASK_RUNS, clock=lambda: store.now)
    for number in range(3):
        store.enter(store.start(f"t{number}").run_id, STATES[-1 - number])
    await index.look()
    text = views.task_list(find(index, TaskQuery(limit=2)), 2, 0)
    answer = json.loads(text)
    assert set(answer) == set(views.TaskList.model_fields)
    assert all(set(task) == set(views.TaskSummary.model_fields) for task in answer["tasks"])
    assert (answer["total_count"], answer["has_more"]) == (3, True)
    assert json.loads(views.TaskList.model_validate_json(text).model_dump_json()) == answer
