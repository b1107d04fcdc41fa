"""`sandbox task continue`, and what the command line shows of a run that has used up its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api_site import ApiSite
from tests.integration.cli.test_task import Sandbox
from tests.waiting import until
from workflows.runs.messages import TokenUsage
from workflows.runs.requests import AgentRequest, AgentResult
from workflows.runs.states import Cause

SPENT = "The budget of this run is used up: 120 of 100 tokens are used."
# A model's name is what the provider, or a program in its place, says.
USAGE = TokenUsage(
    requests=2,
    input_tokens=100,
    output_tokens=20,
    cost_usd=0.25,
    unpriced_tokens=20,
    unpriced_usd=0.5,
    unpriced_models=["odd\x1b[31m-model"],
    budget_tokens=100,
    budget_usd=3.0,
)


@pytest.fixture
def sandbox(site: ApiSite, tmp_path: Path) -> Sandbox:
    return Sandbox(site.url, tmp_path)


async def test_a_run_that_waits_is_shown_and_continued(site: ApiSite, sandbox: Sandbox) -> None:
    def follow(_: AgentRequest) -> AgentResult | None:
        if site.steps.calls.count("run_agent") > 1:
            return None
        return AgentResult(running=True, cause=Cause.BUDGET_EXCEEDED, error=SPENT, usage=USAGE)

    site.steps.instead["run_agent"] = follow
    async with site.worker() as steps:
        limits = {"max_budget_usd": 3.0, "max_tokens_total": 100}
        task_id = await site.submit(claude=limits, lifecycle={"budget_action": "pause"})
        await site.until_state(task_id, "awaiting_decision")
        shown = (await sandbox("task", "status", task_id)).out
        assert f"awaiting_decision  {SPENT}" in shown
        assert "100 in, 20 out; 120 of 100 in all" in shown
        assert "$0.2500 of $3.00" in shown
        assert f"sandbox task continue {task_id} --budget USD" in shown
        assert "\x1b" not in shown

        async def is_listed() -> bool:
            return task_id in (await sandbox("task", "list", "--state", "awaiting_decision")).out

        # Lists are of what Temporal's visibility store has, which comes a moment after the run's own answer.
        await until(is_listed, "the run in the list of those that wait")
        for arguments, code, words in (
            ((), 2, "--budget"),
            (("--budget", "much"), 2, "--budget"),
            (("--budget", "nan"), 2, "--budget"),
            (("--budget", "5"), 1, "is not enough"),
            (("--tokens", "20"), 1, "is not enough"),
            (("--tokens", "-1"), 2, "more than nothing"),
            (("--budget", "-1"), 2, "more than nothing"),
            (("--budget", "0"), 2, "more than nothing"),
            (("--tokens", "900", "--budget", "-1"), 2, "more than nothing"),
        ):
            refused = await sandbox("task", "continue", task_id, *arguments)
            assert (refused.code, refused.out) == (code, ""), refused
            assert words in refused.err
        told = await sandbox("task", "continue", task_id, "--tokens", "900", "--budget", "2")
        assert (told.code, told.err.strip()) == (0, f"{task_id} goes on with a budget of $5.00 and 1,000 tokens.")
        again = await sandbox("task", "continue", task_id, "--tokens", "900")
        assert (again.code, again.out) == (3, "")
        assert "does not wait for a decision" in again.err
        steps.agent_over.set()
        await site.until_state(task_id, "completed")
    status = await sandbox("task", "status", task_id)
    assert "price table has no price for odd" in status.out.replace("\n", " ")
