"""Parent tasks over real Temporal: nothing that many clients change at once is lost, however often it is."""

from __future__ import annotations

import asyncio

import pytest

from api.parents.core import Parents
from foundation.errors import ParentNotFound
from tests.api_site import ApiSite
from workflows.history import Share
from workflows.parents.messages import ParentFields

PROJECT = "7"
CLIENTS, ROUNDS = 5, 4


async def test_a_parent_task_that_is_changed_very_often_goes_on_with_new_histories(
    site: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.history.RENEWED", Share(3, 20_000, 2**20))
    parents: Parents = site.app.services.parents
    async with site.worker():
        parent = await parents.create(PROJECT, ParentFields(title="a task"), "someone")
        first = await parents._executions.describe(parent.id)

        async def client(name: str) -> None:
            for number in range(ROUNDS):
                await parents.change(PROJECT, parent.id, {"facts": {f"{name}{number}": number}})

        await asyncio.gather(*(client(name) for name in "abcde"[:CLIENTS]))
        status = await parents.get(PROJECT, parent.id)
        assert len(status.facts) == status.revision == CLIENTS * ROUNDS
        last = await parents._executions.describe(parent.id)
        assert first is not None
        assert last is not None
        assert last.run_id != first.run_id
        # A deletion in the same moment as changes is one, and is not told as one of nothing.
        changes = [parents.change(PROJECT, parent.id, {"title": str(number)}) for number in range(CLIENTS)]
        *changed, deleted = await asyncio.gather(*changes, parents.delete(PROJECT, parent.id), return_exceptions=True)
        assert deleted is None
        assert all(isinstance(each, ParentNotFound) for each in changed if isinstance(each, BaseException))
        with pytest.raises(ParentNotFound):
            await parents.get(PROJECT, parent.id)
