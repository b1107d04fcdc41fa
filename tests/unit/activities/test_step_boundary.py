"""What reaches a workflow when a step fails."""

from __future__ import annotations

import inspect
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities.step import boundary as failures
from activities.step.boundary import boundary, bounded_retries
from foundation.errors import BucketUnavailable, GuestUnreachable, RefNotFound, RepositoryUnreachable
from workflows.messages import SENTENCE_CHARS


def failing(error: Exception) -> ApplicationError:
    @boundary
    def step() -> None:
        raise error

    with pytest.raises(ApplicationError) as caught:
        step()
    return caught.value


def test_an_error_of_the_project_keeps_its_sentence_code_and_details() -> None:
    told = failing(RefNotFound("No branch 'x'.", branch="x"))

    assert (told.message, told.type, told.non_retryable) == ("No branch 'x'.", "ref_not_found", True)
    assert list(told.details) == [{"branch": "x"}]
    assert told.__cause__ is None


def test_a_retryable_error_stays_retryable() -> None:
    assert not failing(RepositoryUnreachable("No answer.")).non_retryable


@pytest.mark.parametrize("url", ["https://me:hush@host/", "ssh://git:hush@host/a", "https://host/?token=hush"])
def test_what_reaches_history_is_bounded_and_holds_no_credentials(url: str) -> None:
    words = f"unable to access '{url}': " + "x" * 5000
    assert "hush" not in failing(OSError(words)).message
    assert len(failing(OSError(words)).message) <= SENTENCE_CHARS
    assert "hush" not in str(failing(RefNotFound(words, url=[{"a": words}])))
    assert "hush" not in str(failing(RefNotFound(words, url=[{"a": words}])).details)


@pytest.mark.parametrize(("error", "final"), [(OSError(28, "No space left"), False), (KeyError("x"), True)])
def test_other_errors_become_internal_ones(error: Exception, final: bool) -> None:
    told = failing(error)

    assert told.type == "internal_error"
    assert type(error).__name__ in told.message
    assert told.non_retryable is final


@pytest.mark.parametrize("error", [ApplicationError("mine", type="x"), CancelledError("stop")])
def test_temporals_own_errors_pass(error: Exception) -> None:
    @boundary
    def step() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        step()
    assert caught.value is error


async def test_async_steps_are_guarded_too() -> None:
    @boundary
    async def step() -> None:
        raise RefNotFound("No commit.")

    assert inspect.iscoroutinefunction(step)
    with pytest.raises(ApplicationError, match="No commit"):
        await step()


def test_a_guarded_step_keeps_its_types_for_temporal() -> None:
    class Steps:
        @activity.defn(name="a_step")
        @boundary
        def a_step(self, request: int) -> str:
            return str(request)

    assert inspect.signature(Steps.a_step).return_annotation == "str"
    assert Steps().a_step(1) == "1"


class _Clock:
    """What ``time`` is to the module: a clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def repeated(error: Exception, attempts: list[tuple[float, float]]) -> list[bool]:
    """Whether each failure was said to be the last, of attempts that lasted so long after so long a wait."""
    clock = _Clock()

    @bounded_retries()
    @boundary
    def step(lasts: float) -> None:
        clock.now += lasts
        raise error

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_run_id=uuid.uuid4().hex)
    ended = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "time", clock)
        for waits, lasts in attempts:
            clock.now += waits
            with pytest.raises(ApplicationError) as told:
                environment.run(step, lasts)
            ended.append(told.value.non_retryable)
            if told.value.non_retryable:
                break
    return ended


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 600)), min_size=1, max_size=60))
def test_a_step_that_only_fails_is_given_up_and_one_that_works_between_is_not(
    attempts: list[tuple[float, float]],
) -> None:
    ended = repeated(GuestUnreachable("No answer."), attempts)
    # The failures since the last attempt that worked for a while.
    ends, now = [], 0.0
    for waits, lasts in attempts[: len(ended)]:
        now += waits + lasts
        ends = [now] if lasts > failures.WORKED_SECONDS else [*ends, now]
    enough = len(ends) > failures.FAILURES_LEAST and ends[-1] - ends[0] >= failures.FAILING_SECONDS
    assert ended[-1] is enough
    assert not any(ended[:-1])


def test_a_step_that_fails_for_ever_is_given_up_after_a_quarter_of_an_hour() -> None:
    ended = repeated(GuestUnreachable("No answer."), [(15.0, 1.0)] * 500)
    assert ended[-1]
    assert len(ended) * 16 < failures.FAILING_SECONDS + 60


def test_a_bucket_that_is_away_is_waited_for_however_long() -> None:
    assert not any(repeated(BucketUnavailable("Away."), [(15.0, 3.0)] * 500))


def test_a_success_begins_the_count_anew() -> None:
    fails = True

    @bounded_retries()
    @boundary
    def step() -> None:
        if fails:
            raise GuestUnreachable("No answer.")

    environment = ActivityEnvironment()
    with pytest.raises(ApplicationError):
        environment.run(step)
    fails = False
    environment.run(step)
    key = (environment.info.workflow_run_id or "", environment.info.activity_id)
    assert key not in failures._spells
