"""Workers that are there: by when Temporal saw each of them poll, whatever the clocks of the two say."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from api.temporal.client import Engine
from api.temporal.pollers import AWAY_SECONDS, Pollers

POLL_SECONDS = 61.0


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(0.1, 4000), min_size=1, max_size=20),
    st.floats(0, POLL_SECONDS),
    st.floats(0, 2000),
)
def test_a_worker_counts_while_it_polls_and_soon_no_more(
    ahead: float, pauses: list[float], phase: float, died_at: float
) -> None:
    now = 0.0
    pollers = Pollers(cast("Engine", None), clock=lambda: now)
    for pause in pauses:
        now += pause
        # Both poll once a minute; one is there for good, the other until it dies, and Temporal names it for long yet.
        polls = {"steady": now - now % POLL_SECONDS}
        last = min(now, died_at)
        polls["mortal"] = last - (last + phase) % POLL_SECONDS
        dated = {name: 1e9 + ahead + at for name, at in polls.items()}
        count = pollers.take(dated)
        if now <= died_at:
            assert count == 2
        elif now > died_at + AWAY_SECONDS + POLL_SECONDS:
            assert count == 1
    assert pollers.take({}) == 0


def test_a_worker_counts_again_at_once_when_temporals_clock_was_put_back() -> None:
    now = 0.0
    pollers = Pollers(cast("Engine", None), clock=lambda: now)
    assert pollers.take({"one": 10_000.0}) == 1
    now = 60.0
    assert pollers.take({"one": 9_000.0}) == 1
