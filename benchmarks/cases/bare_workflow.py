"""A Temporal workflow of a few activities that do nothing: what any workflow of as many steps costs at least."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow

ACTIVITIES = 6


@activity.defn
async def bare_step(text: str) -> str:
    """Gives back what it was given."""
    return text


@workflow.defn
class BareWorkflow:
    """The activities one after another."""

    @workflow.run
    async def run(self, text: str) -> str:
        """The text as it came through all of them."""
        for _ in range(ACTIVITIES):
            text = await workflow.execute_activity(bare_step, text, start_to_close_timeout=timedelta(minutes=1))
        return text
