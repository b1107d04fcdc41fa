"""ParentWorkflow: a parent task from its creation to its deletion, with no step and no machine."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names
    from workflows.history import History
    from workflows.parents.messages import Deletion, ParentChange, ParentFields, ParentStatus


@workflow.defn(name=names.PARENTS.type)
class ParentWorkflow:
    """Keeps one parent task. It is shown by memo and search attributes alone, so that a look at it needs no worker."""

    @workflow.init
    def __init__(self, status: ParentStatus) -> None:
        self._status = status
        self._history = History()

    @workflow.update(name=names.CHANGE_PARENT, description="Change fields of the parent task")
    def change(self, change: ParentChange) -> ParentStatus:
        """Not public: sent by the API, which has checked the fields. Answered with the parent task as it stands."""
        self._history.count_update()
        if not self._status.deleted:
            known = {name: value for name, value in change.fields.items() if name in ParentFields.model_fields}
            if "facts" in known:
                known["facts"] = self._status.facts | known["facts"]
            self._show(
                self._status.model_copy(update=ParentFields.model_validate(known).model_dump(include=set(known)))
            )
        return self._status

    @workflow.update(name=names.DELETE_PARENT, description="Delete the parent task; its runs stay")
    def delete(self, _: Deletion) -> ParentStatus:
        """Not public: sent by the API."""
        self._history.count_update()
        if not self._status.deleted:
            self._show(self._status.model_copy(update={"deleted": True}))
        return self._status

    @workflow.run
    async def run(self, status: ParentStatus) -> ParentStatus:  # noqa: ARG002 -- taken in __init__
        """Wait for changes, until the parent task is deleted."""
        await workflow.wait_condition(lambda: self._status.deleted or self._history.is_to_be_renewed())
        await workflow.wait_condition(workflow.all_handlers_finished)
        if not self._status.deleted:
            workflow.continue_as_new(
                self._status,
                memo={names.STATUS_MEMO: self._status.model_dump(mode="json")},
                search_attributes=workflow.info().typed_search_attributes,
            )
        return self._status

    def _show(self, status: ParentStatus) -> None:
        now = workflow.now()
        self._status = status.model_copy(update={"updated_at": now, "revision": status.revision + 1})
        workflow.upsert_memo({names.STATUS_MEMO: self._status.model_dump(mode="json")})
        workflow.upsert_search_attributes(
            [names.STATE_KEY.value_set(self._status.state), names.CHANGED_KEY.value_set(now)]
        )
