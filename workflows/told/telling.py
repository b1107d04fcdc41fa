"""The record of one run as its workflow keeps it: each change is checked before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from foundation.errors import TaskyardError
from workflows.refusals import refusal
from workflows.told.record import Change, Told, merge


class Telling:
    """What one run was told. Once it ``is_over``, no change counts."""

    def __init__(self, told: Told | None, *, is_over: Callable[[], bool]) -> None:
        self.told = told or Told()
        self._is_over = is_over

    def check(self, change: Change) -> None:
        """Raise ApplicationError, with the code of an error of ours, for a change that would be refused now."""
        if self._is_over():
            return
        try:
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
        if told == self.told:
            return False
        self.told = told.model_copy(update={"changed_at": at})
        return True
