"""How full the history of one workflow is: past Temporal's limits nothing more can be told to it, not even its end.

For one history these are 2,000 updates, 51,200 events and 50 MiB. Signals and steps count among its events.
"""

from __future__ import annotations

from dataclasses import dataclass

from temporalio import workflow

from foundation.errors import RateLimitExceeded
from workflows.refusals import refusal


@dataclass(frozen=True)
class Share:
    """A part of a history: updates that were accepted, whoever sent them; events; and bytes."""

    updates: int
    events: int
    size: int


# Each kind of news leaves room for those behind it: a run that was told too much still hears who steers it, and its
# follower still tells of the turns of the messages that were taken.
#: Of what clients tell of a run.
TOLD = Share(1_000, 30_000, 10 * 2**20)
#: Of all other updates that clients send.
STEERED = Share(1_500, 40_000, 20 * 2**20)
#: Of messages to the agent. Each brings an update of the follower's, and stands there once more when it is delivered.
MESSAGES = Share(1_700, 40_000, 15 * 2**20)
#: Past this a run ends itself, while it still can do so in order.
WHOLE = Share(1_900, 45_000, 40 * 2**20)
#: Past this a workflow begins a new history, if it is of a kind that can.
RENEWED = Share(1_000, 20_000, 20 * 2**20)


class History:
    """What the history of one workflow has taken. The one who accepts an update counts it here, first of all."""

    def __init__(self) -> None:
        self.updates = 0

    def count_update(self) -> None:
        """An update was accepted: it stands in history, whatever becomes of it."""
        self.updates += 1

    def is_past(self, share: Share) -> bool:
        """Whether so much of it is used up."""
        info = workflow.info()
        return (
            self.updates >= share.updates
            or info.get_current_history_length() > share.events
            or info.get_current_history_size() > share.size
        )

    def is_to_be_renewed(self) -> bool:
        """Whether a workflow that can go on with a new history is to do so."""
        return workflow.info().is_continue_as_new_suggested() or self.is_past(RENEWED)

    def check_told(self) -> None:
        """Raise ApplicationError, with the code of an error of ours, for what clients tell too much of a run."""
        self._check(TOLD, "So much was told of the run that its history keeps what room it has for the run itself.")

    def check_steered(self) -> None:
        """The same for every other update of a client. It is called before one is accepted."""
        self._check(STEERED, "The run has taken as much as its history has room for; it only goes on to its end.")

    def _check(self, share: Share, sentence: str) -> None:
        if self.is_past(share):
            raise refusal(RateLimitExceeded(sentence))
