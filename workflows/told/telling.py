"""The record of one run as its workflow keeps it: each change is checked before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from foundation.errors import RateLimitExceeded, TaskyardError
from workflows.refusals import refusal
from workflows.told.record import Change, Told, merge


class Telling:
    """What one run was told. Once it ``is_over``, no change counts; while it ``is_full``, none is taken."""

    def __init__(
        self, told: Told | None, *, is_over: Callable[[], bool], is_full: Callable[[], bool] = lambda: False
    ) -> None:
        self.told = told or Told()
        self.taken = 0
        self._is_over = is_over
        self._is_full = is_full

    def check(self, change: Change) -> None:
        """Raise ApplicationError, with the code of an error of ours, for a change that would be refused now."""
        if self._is_over():
            return
        try:
            if self._is_full():
                raise RateLimitExceeded(
                    "So much was told of the run that its history keeps what room it has for its own steps."
                )
            merge(self.told, change)
        except TaskyardError as error:
            raise refusal(error) from None

    def take(self, change: Change, at: datetime) -> bool:
        """Merge a change that was checked; whether anything is another than before."""
        if self._is_over():
            return False
        try:
            told = merge(self.told, change)
        except TaskyardError as error:
            # What came between the check and this has left no room.
            raise refusal(error) from None
        # What changes nothing stands in history too.
        self.taken += 1
        if told == self.told:
            return False
        self.told = told.model_copy(update={"changed_at": at})
        return True
