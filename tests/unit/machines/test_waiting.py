"""Whoever waits for room gets it in the order of submission, and nobody waits for ever."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundation.errors import InsufficientResources
from machines.ledger import Capacity, NoRoom, admit
from machines.records import MachineRecord, Reservation, record_of
from machines.waiting import LATER, PATIENCE, WaitingLine, next_look

GIB = 2**30
BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
LIFE = 20.0


@dataclass
class Host:
    """One host; its own clock is ``clock_ahead`` seconds before the others'."""

    cpus: int
    clock_ahead: float = 0.0
    records: dict[str, MachineRecord] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.line = WaitingLine(lambda: self.now + self.clock_ahead)

    def reserve(self, request: Reservation) -> None:
        capacity = Capacity(self.cpus, 64 * GIB, 1024 * GIB, 1024 * GIB)
        self.line.in_turn(request, lambda ahead: admit(capacity, list(self.records.values()), request, ahead))
        self.records[request.machine_id] = record_of(request)

    @property
    def free(self) -> int:
        return self.cpus - sum(record.cpus for record in self.records.values())


@dataclass
class Run:
    """Submitted at ``at`` seconds, heard of by a host a little later, cancelled when it has waited so long."""

    at: float
    cpus: int = 1
    lag: float = 0.0
    patience: float | None = None
    first_host: int = 0
    asked: int = 0
    admitted_at: float | None = None
    over: bool = False

    def request(self, number: int) -> Reservation:
        since = BEGIN + timedelta(seconds=self.at)
        return Reservation(f"vm-{number:016x}", "w", "r", self.cpus, GIB, GIB, BEGIN, since)


def simulate(hosts: list[Host], runs: list[Run], end: float = 2000.0) -> list[int]:
    """Numbers of the runs in the order in which they were admitted."""
    order: list[int] = []
    events = [(run.at + run.lag, number, "ask") for number, run in enumerate(runs)]
    events += [(run.at + run.patience, number, "cancel") for number, run in enumerate(runs) if run.patience is not None]
    heapq.heapify(events)
    while events and events[0][0] < end:
        now, number, kind = heapq.heappop(events)
        run = runs[number]
        if kind == "end":
            for host in hosts:
                host.records.pop(run.request(number).machine_id, None)
        elif kind == "cancel":
            run.over = run.over or run.admitted_at is None
        elif not run.over:
            host = hosts[(run.first_host + run.asked) % len(hosts)]
            host.now = now
            run.asked += 1
            free = host.free
            try:
                host.reserve(run.request(number))
            except NoRoom as full:
                again = next_look(full.details["older"])
            except InsufficientResources:
                again = LATER
            else:
                if len(hosts) == 1:
                    waiting = [
                        each.cpus
                        for other, each in enumerate(runs)
                        if each.asked
                        and not each.over
                        and each.admitted_at is None
                        and (each.at, other) < (run.at, number)
                    ]
                    assert sum(waiting) + run.cpus <= free, f"run {number} took the place of an older one"
                run.admitted_at, run.over = now, True
                order.append(number)
                heapq.heappush(events, (now + LIFE, number, "end"))
                continue
            heapq.heappush(events, (now + again.total_seconds(), number, "ask"))
    return order


times = st.integers(0, 300).map(lambda tenths: tenths / 10)
runs_of_one_size = st.lists(
    st.builds(Run, at=times, lag=st.floats(0, 1), patience=st.none() | st.floats(1, 60)), min_size=2, max_size=12
)


@given(runs=runs_of_one_size, room=st.integers(1, 3))
@example(runs=[Run(0), Run(1), Run(2)], room=1)
def test_no_run_on_one_host_takes_the_place_of_an_older_one(runs: list[Run], room: int) -> None:
    runs = [Run(each.at, lag=each.lag, patience=each.patience) for each in runs]
    order = simulate([Host(room)], runs)
    for number, run in enumerate(runs):
        assert (number in order) or run.patience is not None
    if room == 1 and all(run.lag == 0 for run in runs):
        assert order == sorted(order, key=lambda number: (runs[number].at, number))


@settings(max_examples=40)
@given(
    runs=st.lists(
        st.builds(
            Run, at=times, cpus=st.integers(1, 9), patience=st.none() | st.floats(1, 60), first_host=st.integers(0, 1)
        ),
        min_size=1,
        max_size=12,
    ),
    rooms=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    apart=st.floats(-1e6, 1e6),
)
def test_every_run_that_some_host_can_hold_is_admitted_in_time(
    runs: list[Run], rooms: tuple[int, int], apart: float
) -> None:
    runs = [Run(each.at, each.cpus, patience=each.patience, first_host=each.first_host) for each in runs]
    simulate([Host(rooms[0]), Host(rooms[1], apart)], runs, end=1000)
    # Behind each of the others, at worst: its machine, and the place kept for it that it does not take.
    bound = (len(runs) + 1) * (LIFE + PATIENCE.total_seconds() + 2 * LATER.total_seconds())
    for run in runs:
        if run.cpus <= max(rooms) and run.patience is None:
            assert run.admitted_at is not None
            assert run.admitted_at - run.at <= bound


@settings(max_examples=6)
@given(cpus=st.integers(2, 4), every=st.floats(4, 6))
def test_a_large_run_is_not_starved_by_small_ones_that_never_end(cpus: int, every: float) -> None:
    small = [Run(number * every) for number in range(int(400 / every))]
    large = Run(50.1, cpus)
    simulate([Host(4)], [*small, large], end=400)
    assert large.admitted_at is not None
    before = sum(run.at < large.at for run in small)
    assert large.admitted_at - large.at <= (before + 4) * LIFE / 4 + LIFE


@given(older=st.integers(1, 5), asked_again=st.booleans())
def test_whoever_asks_no_more_keeps_no_place(older: int, asked_again: bool) -> None:
    host = Host(4)
    host.reserve(Run(0, 4).request(0))
    for number in range(1, older + 1):
        with pytest.raises(NoRoom):
            host.reserve(Run(number, 4).request(number))
    host.records.clear()
    last = Run(99).request(99)
    words = "1 run waits that was" if older == 1 else f"{older} runs wait that were"
    host.now = PATIENCE.total_seconds()
    with pytest.raises(NoRoom, match=f"{words} submitted before it and come first"):
        host.reserve(last)
    host.now += 0.1 if not asked_again else -0.1
    if asked_again:
        host.reserve(Run(1, 4).request(1))
    else:
        host.reserve(last)


def test_room_that_only_people_free_is_not_waited_for_by_those_who_come_later() -> None:
    host = Host(4)
    host.reserve(Run(0).request(0))
    kept = Run(0).request(0).machine_id
    large, small = Run(1, 4).request(1), Run(2).request(2)
    with pytest.raises(NoRoom):
        host.reserve(large)
    with pytest.raises(NoRoom, match="come first"):
        host.reserve(small)
    host.records[kept] = host.records[kept].model_copy(update={"state": "preserved"})
    host.reserve(small)
    with pytest.raises(NoRoom):
        host.reserve(large)
