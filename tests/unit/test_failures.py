"""What reaches a workflow when a step fails."""

from __future__ import annotations

import inspect

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError

from activities.failures import boundary
from foundation.errors import RefNotFound, RepositoryUnreachable


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
