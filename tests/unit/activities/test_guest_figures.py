"""Figures of a guest, read from what it writes, whatever that is."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from activities.agent.guest_figures import FiguresReader

AT = datetime(2030, 1, 1, tzinfo=UTC)


def sample(busy: int, idle: int, disk: str = "/dev/vdb 6000 1000 5000 17% /workspace") -> bytes:
    return (
        f"0.50 0.25 0.10 1/99 321\ncpu  {busy} 0 0 {idle} 0 0 0 0 0 0\nMemTotal: 1000 kB\nMemAvailable: 400 kB\n"
        f"{disk}\n.\n"
    ).encode()


def test_the_use_of_the_cpus_is_that_since_the_last_sample() -> None:
    reader = FiguresReader()
    reader.feed(sample(100, 900), AT)
    assert reader.latest is not None
    assert reader.latest.cpu_percent == 10.0
    text = sample(400, 1000)
    for place in range(len(text)):
        reader.feed(text[place : place + 1], AT)
    assert reader.latest.cpu_percent == 75.0
    assert (reader.latest.memory_used_bytes, reader.latest.memory_total_bytes) == (600 * 1024, 1000 * 1024)
    assert (reader.latest.disk_used_bytes, reader.latest.disk_total_bytes) == (1000 * 1024, 6000 * 1024)
    assert reader.latest.load_avg == (0.5, 0.25, 0.1)


def test_what_is_no_sample_is_passed_over_and_the_next_one_counts() -> None:
    reader = FiguresReader()
    reader.feed(sample(1, 1, disk="df: /workspace: No such file"), AT)
    assert reader.latest is None
    reader.feed(sample(1, 1).replace(b"0.25", b"nan") + sample(5, 1, "x -1 -1"), AT)
    assert reader.latest is None
    reader.feed(b"cat: broken\n.\n" + b"x" * 100_000 + b"\n.\n" + sample(1, 1), AT)
    assert reader.latest is not None


@given(st.lists(st.binary(max_size=200) | st.just(b"\n.\n"), max_size=20))
def test_no_guest_can_break_its_reader_or_fill_its_memory(pieces: list[bytes]) -> None:
    reader = FiguresReader()
    for piece in pieces:
        reader.feed(piece * 50, AT)
    assert len(reader._pending) <= 16 * 1024
