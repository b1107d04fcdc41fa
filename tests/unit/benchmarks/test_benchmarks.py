"""The benchmarks' own sums, order and tidiness; what they measure is measured elsewhere, by running them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest
from temporalio.client import WorkflowHistory

from benchmarks import event_loop
from benchmarks import lab as lab_module
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.log_latency import LINES, latencies
from benchmarks.lab import Lab
from benchmarks.measurements import Machine, Results, load_results, make_result
from benchmarks.page import BEGIN, END, block, publish, table
from benchmarks.plot import picture
from benchmarks.runner import choose, measure
from benchmarks.sample_tree import make_tree
from benchmarks.step_times import read_steps
from benchmarks.stopwatch import Stopwatch
from foundation.errors import InvalidParameter, TaskyardError

MACHINE = Machine(cores=2, processor="P", memory=4 * 2**30, acceleration="tcg", qemu="QEMU 7", system="Linux 6")
MORNING = datetime(2030, 1, 1, 6, tzinfo=UTC)


class Journal:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def case(self, case: Case, runs: int) -> None:
        self.lines.append(f"{case.name} {runs}")

    def run(self, side: str, number: int) -> None:
        self.lines.append(f"{side} {number}")

    def ended(self, run: Run) -> None:
        self.lines.append(f"took {run.figures['whole']:g}")


def a_case(name: str = "case", ours: Iterator[float] = iter([]), by_hand: Iterator[float] = iter([]), **more) -> Case:  # noqa: B008
    @contextmanager
    def opened(_: Lab) -> Iterator[Sides]:
        yield Sides(lambda: a_run(next(ours)), lambda: a_run(next(by_hand)))

    figures = more.pop("figures", (Figure("whole", "the whole"),))
    return Case(name, name.title(), "plain tools", figures, opened, **more)


def a_run(seconds: float) -> Run:
    return Run({"whole": seconds}, {"first": seconds / 4, "rest": seconds * 3 / 4})


def a_result(name: str, *pairs: tuple[float, float], **figure):
    case = a_case(name, figures=(Figure("whole", "the whole", **figure),))
    return make_result(case, [(a_run(mine), a_run(theirs)) for mine, theirs in pairs], MORNING, 0.5)


def gone(pid: int) -> bool:
    """Whether a killed process goes; it may take a moment, and nobody may be there to reap it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TASKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(lab_module, "_SCRIPTS", tmp_path)
    with Lab(lambda _: None) as made:
        yield made


def test_both_sides_take_turns_and_the_warm_up_does_not_count(lab: Lab) -> None:
    journal = Journal()
    case = a_case(ours=iter([9, 1, 2]), by_hand=iter([9, 2, 2]), repeat=2, warm_up=True)
    (result,) = measure([case], lab, journal)
    sides = [line for line in journal.lines if not line.startswith("took")]
    assert sides == ["case 6", "ours 0", "by hand 0", "ours 1", "by hand 1", "ours 2", "by hand 2"]
    assert (result.figures[0].ours, result.figures[0].by_hand) == ([1, 2], [2, 2])
    assert result.phases_ours == {"first": [0.25, 0.5], "rest": [0.75, 1.5]}


def test_rounds_asked_for_override_those_of_the_case(lab: Lab) -> None:
    (result,) = measure([a_case(ours=iter([1]), by_hand=iter([1]), repeat=5)], lab, Journal(), repeat=1)
    assert result.rounds == 1


def test_ratio_is_taken_round_by_round() -> None:
    # A machine that slows down fivefold in the second round changes no ratio.
    ratio = a_result("case", (1, 2), (5, 10), (3, 2)).figures[0].ratio
    assert (ratio.median, ratio.lowest, ratio.highest) == (0.5, 0.5, 1.5)


def test_there_is_no_ratio_to_nothing() -> None:
    result = a_result("case", (0, 0), (1, 2), unit="%", limit=1)
    assert (result.figures[0].ratio, result.figures[0].kept) == (None, True)
    assert "| 0.500 % (0.000–1.000) | 1.0 % (0.0–2.0) |  | 2 | ≤ 1 %: yes |" in block(  # noqa: RUF001
        Results(machine=MACHINE, cases=[result])
    )


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"limit": 2}, "≤ 2 s: yes"),
        ({"limit": 1.5}, "≤ 1.5 s: no"),
        ({"ratio_limit": 0.5, "limit": 3}, "≤ 3 s, ratio ≤ 0.5: yes"),
        ({"ratio_limit": 0.4, "limit": 3}, "≤ 3 s, ratio ≤ 0.4: no"),
        ({}, ""),
    ],
)
def test_medians_are_held_to_their_limits(limits: dict[str, float], told: str) -> None:
    # One slow round does not count, neither in the numbers nor in the ratios.
    result = a_result("case", (2, 4), (9, 4), (2, 4), beside="cold boot", **limits)
    assert f" 4.0 s (cold boot) | 0.50 (0.50–2.25) | 3 | {told} |" in block(  # noqa: RUF001
        Results(machine=MACHINE, cases=[result])
    )


def test_plot_shows_labelled_figures_and_of_other_cases_the_first() -> None:
    figures = (Figure("whole", "a"), Figure("part", "b", label="in & out"), Figure("rest", "c", label="none"))
    numbers = [Run({"whole": 1, "part": 3, "rest": 0}), Run({"whole": 1, "part": 2, "rest": 0})]
    labelled = make_result(a_case("many", figures=figures), [(numbers[0], numbers[1])], MORNING, 0.5)
    drawn = ET.fromstring(picture(Results(machine=MACHINE, cases=[a_result("plain", (1, 4)), labelled])))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[3:] == ["Plain", "1.0 s", "4.0 s", "0.25", "in & out", "3.0 s", "2.0 s", "1.50"]
    widths = [float(element.attrib["width"]) for element in drawn.iter("{http://www.w3.org/2000/svg}rect")][2:]
    assert [width / widths[1] for width in widths] == pytest.approx([0.25, 1, 1.5, 1], abs=0.01)


def test_plot_of_a_run_without_results_is_drawn() -> None:
    assert "by hand" in picture(Results(machine=MACHINE))


def test_unknown_case_is_refused_with_the_known_ones() -> None:
    assert [case.name for case in choose(["cold-boot", "image-build"])] == ["image-build", "cold-boot"]
    with pytest.raises(InvalidParameter, match=r"no case 'cold'.*image-build, cold-boot"):
        choose(["cold"])


def test_a_new_result_replaces_its_own_case_only(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    results = load_results(path, MACHINE)
    for result in (a_result("b", (1, 1)), a_result("a", (1, 1)), a_result("b", (4, 1))):
        results.take(result, ["a", "b"])
    results.save(path)
    kept = load_results(path, MACHINE)
    assert [(case.name, case.figures[0].ours) for case in kept.cases] == [("a", [1]), ("b", [4])]
    assert load_results(path, MACHINE.model_copy(update={"cores": 64})).cases == []


def test_page_gets_the_figures_between_its_marks_any_number_of_times(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    results = Results(machine=MACHINE, cases=[a_result("case", (3, 2), (6, 2))])
    publish(results, page)
    once = page.read_text()
    publish(results, page)
    assert page.read_text() == once
    assert once.startswith("Before.\n")
    assert once.endswith("After.\n")
    assert "old" not in once
    assert "| Case | the whole | 4.5 s (3.0–6.0) | 2.0 s | 2.25 (1.50–3.00) | 2 |" in once  # noqa: RUF001


def test_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("By hand.\n")
    with pytest.raises(InvalidParameter, match="between which the figures go"):
        publish(Results(machine=MACHINE), page)
    assert page.read_text() == "By hand.\n"


def test_figures_name_no_path_and_no_host() -> None:
    results = Results(machine=MACHINE, cases=[a_result("case", (3, 2))])
    assert table(results).row_count == 1
    assert str(Path.home()) not in block(results)


def test_marks_of_a_script_become_laps(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "ok.sh").write_text('for name in one_step two; do echo "$name $EPOCHREALTIME" >>"$MARKS"; done; pwd\n')
    watch = lab.by_hand("ok.sh", {})
    assert list(watch.laps) == ["one step", "two"]
    assert 0 < sum(watch.laps.values()) < 60
    assert list(lab.directory.iterdir()) == []


def test_a_failing_script_tells_its_last_lines(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "bad.sh").write_text('echo "no such $THING" >&2; exit 7\n')
    with pytest.raises(TaskyardError, match=r"exit code 7.*\nno such luck"):
        lab.by_hand("bad.sh", {"THING": "luck"})


def test_what_a_script_leaves_running_ends_with_it(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "child.sh").write_text(f"sleep 300 & echo $! >{tmp_path}/pid\n")
    lab.by_hand("child.sh", {})
    pid = int((tmp_path / "pid").read_text())
    assert gone(pid)


def test_laps_of_one_name_add_up() -> None:
    watch = Stopwatch(100.0)
    for name, at in (("a", 101.0), ("b", 103.0), ("a", 106.0)):
        watch.lap(name, at)
    assert watch.laps == {"a": 4.0, "b": 2.0}


def test_a_guest_whose_clock_is_wrong_and_slow_changes_no_latency() -> None:
    def there(here: float) -> float:
        return here * 0.99 + 100

    # The quickest look is the one that counts: the others were held up on one side only.
    looks = [(at, there(at + 0.001), at + 0.002 if at % 20 == 3 else at + 2) for at in map(float, range(40))]
    arrivals = [(5 + number / 10, there(5 + number / 10 - 0.05)) for number in range(LINES)]
    figures = latencies(arrivals, looks).figures
    assert (figures["median"], figures["p99"]) == pytest.approx((50, 50), abs=0.5)
    with pytest.raises(TaskyardError, match=f"Of {LINES} lines that were written, {LINES - 1} came"):
        latencies(arrivals[1:], looks)


@pytest.mark.parametrize(
    ("history", "left_out"),
    [
        ("completed", set()),
        ("reserved_at_once", {"inject_secrets", "release_machine"}),
        ("reserved_later", {"release_machine"}),
    ],
)
def test_steps_of_a_run_follow_one_another_without_those_beside_them(history: str, left_out: set[str]) -> None:
    recorded = Path(__file__).parents[2] / "histories" / "runs" / f"{history}.json"
    steps = list(read_steps(WorkflowHistory.from_json(f"task-{history}", recorded.read_text()).events))
    every = [
        "reserve_host",
        "stage_repository",
        "provision_machine",
        "inject_secrets",
        "run_agent",
        "collect_artifacts",
        "release_machine",
        "finish_run",
    ]
    assert [step.name for step in steps] == [name for name in every if name not in left_out]
    moments = [moment for step in steps for moment in (step.began, step.ended)]
    assert moments == sorted(moments)


def test_laps_end_at_moments() -> None:
    watch = Stopwatch(100.0)
    for name, at in (("a", 101.0), ("b", 103.0), ("c", 106.0)):
        watch.lap(name, at)
    assert watch.moments == {"a": 1.0, "b": 3.0, "c": 6.0}


def test_sample_tree_is_as_large_as_asked_and_always_the_same(tmp_path: Path) -> None:
    def content(tree: Path) -> dict[str, bytes]:
        return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}

    counts = [make_tree(tmp_path / name, 300_000) for name in ("one", "two")]
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one == two
    assert counts == [len(one)] * 2
    assert sum(map(len, one.values())) == 300_000


_INTERRUPTED = """
import sys
from pathlib import Path
from benchmarks import lab, runner
from benchmarks.case import Case, Figure, Sides
from contextlib import contextmanager
from cli.host import bench
lab._SCRIPTS = Path(sys.argv[1])
@contextmanager
def opened(place):
    yield Sides(lambda: place.by_hand("long.sh", {"PLACE": sys.argv[1]}), None)
runner.CASES = (Case("long", "Long", "", (Figure("whole", "the whole"),), opened),)
try:
    bench.bench([], None, 0, False, False)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("order", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path, order: signal.Signals) -> None:
    (tmp_path / "long.sh").write_text('sleep 300 & echo $! >"$PLACE/draft"; mv "$PLACE/draft" "$PLACE/pid"; wait\n')
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(tmp_path)],
        env={
            "PATH": "/usr/bin:/bin",
            "TASKYARD_HOME": str(tmp_path / "h"),
            "TASKYARD_ACCELERATION": "tcg",
            "TMPDIR": str(temporary),
        },
        cwd=Path(__file__).parents[3],
        stdout=subprocess.DEVNULL,
    )
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not pid.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(order)
    assert process.wait(30) == 130
    assert gone(int(pid.read_text()))
    assert list(temporary.iterdir()) == []


def test_a_signal_ends_a_case_that_ends_its_worker_and_the_worker_its_steps() -> None:
    ended: list[str] = []

    @asynccontextmanager
    async def a_worker() -> AsyncIterator[None]:
        told = threading.Event()

        async def poll() -> None:
            # A step in a thread, which hears of the end from the worker alone.
            await asyncio.to_thread(told.wait)
            ended.append("step")

        worker = asyncio.create_task(poll())
        try:
            yield
        finally:
            told.set()
            os.kill(os.getpid(), signal.SIGTERM)  # the impatient one, who does not break this off
            await worker
            ended.append("worker")

    async def a_case() -> None:
        async with a_worker():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            event_loop.run(a_case())
        assert signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ["step", "worker"]


def test_a_case_that_no_signal_interrupts_gives_its_result() -> None:
    async def a_case() -> str:
        return "done"

    assert event_loop.run(a_case()) == "done"
