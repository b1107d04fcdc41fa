"""Which earlier run a manifest may continue: one that is known and has ended, of the same repository and branch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from foundation.errors import Conflict, InvalidManifest, TaskNotFound
from foundation.faults import Fault
from foundation.urls import without_credentials
from workflows.runs.messages import CHAIN_MOST, TaskStatus
from workflows.specs.wire import Manifest, Repository


async def chain_of(manifest: Manifest, status_of: Callable[[str], Awaitable[TaskStatus]]) -> list[str]:
    """The runs that a run of the manifest goes on from, the last of them at most; none when it begins anew.

    ``status_of`` gives a run with its manifest. Raises InvalidManifest, Conflict while the earlier run has not ended.
    """
    if manifest.resume is None:
        return []
    run = manifest.resume.run
    try:
        earlier = await status_of(run)
    except TaskNotFound:
        fault = Fault("resume.run", f"names no run: there is none with the id '{run}'", "unknown_run")
        raise InvalidManifest.of([fault]) from None
    if not earlier.state.terminal:
        raise Conflict(
            f"Task '{run}' is {earlier.state} and can be continued once it has ended: send it a message, wait for its "
            "end, or cancel it.",
            existing_task={"id": run, "state": earlier.state.value},
        )
    if earlier.manifest is not None and (wrong := list(_faults(manifest.repository, earlier))):
        raise InvalidManifest.of(wrong)
    return [*earlier.continues, earlier.id][-CHAIN_MOST:]


def _faults(repository: Repository, earlier: TaskStatus) -> Iterator[Fault]:
    before = earlier.manifest.repository if earlier.manifest else repository
    told = f"is not that of run '{earlier.id}', which is to be continued"
    if without_credentials(repository.url) != without_credentials(before.url):
        yield Fault("repository.url", f"{told}: {without_credentials(before.url)}", "other_run")
    if repository.branch != before.branch:
        yield Fault("repository.branch", f"{told}: {before.branch}", "other_run")
    base = earlier.base_commit or before.commit or ""
    if repository.commit is not None and not base.startswith(repository.commit.lower()):
        message = f"is not the one on which run '{earlier.id}' began; leave it out, as that run says where to go on"
        yield Fault("repository.commit", message, "other_run")
