"""Runs in the cloud as this dialect starts them: of a task, with options, a first message and files for the agent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from anyio import to_thread
from pydantic import Field, ValidationError, field_validator

from api.deps import Services
from api.posthog.forms import Form, Uuid
from api.posthog.lookup import FoundRun, find_run
from api.posthog.runs.manifests import CloudOptions, RunOptions, manifest_of
from foundation.errors import Conflict, DuplicateTaskId, InvalidBody, InvalidParameter, NotFound, TaskNotFound
from foundation.faults import Fault
from foundation.units import format_size
from storage.environments.store import Environment
from storage.uploads.manifest import UploadedArtifact
from workflows.parents.messages import ParentStatus
from workflows.told.record import Told

# Of the files that a message brings, together: they are part of its text.
_FILES_BYTES = 128 * 1024
_ARTIFACTS_MOST = 50
# How often one run is resumed.
_RESUMED_MOST = 100
# What a run that goes on from an earlier one takes from it, where its own options do not say.
_INHERITED = tuple(name for name in RunOptions.model_fields if name != "mode")

ArtifactIds = Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=_ARTIFACTS_MOST)]


class FirstMessage(Form):
    """What the agent is to be told first, in the place of the task's description."""

    pending_user_message: Annotated[str, Field(max_length=100_000)] | None = None
    pending_user_artifact_ids: ArtifactIds = []

    @field_validator("pending_user_message")
    @classmethod
    def _trimmed_message(cls, value: str | None) -> str | None:
        return (value or "").strip() or None


class RunRequest(CloudOptions, FirstMessage):
    """Options of a run that is created and started (contract, section 1.2b)."""

    resume_from_run_id: Uuid | None = None


async def start(
    services: Services,
    parent: ParentStatus,
    viewer: str,
    wanted: RunRequest,
    run_id: str | None = None,
    **state: Any,
) -> str:
    """Create a run of the task in the cloud for a ``viewer`` and start it; its id, which is a new one if none is given.

    ``state`` is told of it beside the options.

    Raises InvalidBody, InvalidParameter for an earlier run or artifacts that are not there, and what submitting raises:
    DuplicateTaskId when a run has the id.
    """
    earlier = await _earlier(services, parent, wanted.resume_from_run_id)
    options = _inheriting(wanted, earlier)
    run_id = run_id or str(uuid4())
    staged = chosen(await services.uploads.staged(parent.id), wanted.pending_user_artifact_ids)
    prompt = await first_prompt(services, parent, wanted.pending_user_message, staged)
    environment = await _environment(services, parent, viewer, options)
    # Of a run whose agent worked elsewhere there is neither a conversation nor a tree to go on with.
    resumed = earlier.id if earlier and earlier.cloud else None
    manifest = manifest_of(
        services.settings, parent, options, run_id, prompt=prompt, resumed=resumed, environment=environment
    )
    if staged:
        await services.uploads.adopt(parent.id, run_id, [artifact.id for artifact in staged])
    said = options.told() | state
    for name in ("pending_user_message", "resume_from_run_id"):
        if (value := getattr(wanted, name)) is not None:
            said[name] = value
    await services.core.submit(manifest, viewer=viewer, parent=parent.id, told=told_of(options, said))
    services.metrics.submitted.inc()
    return run_id


async def resume(services: Services, run: FoundRun, viewer: str) -> FoundRun:
    """The run in the cloud that goes on where this one stands; asked for again while it lasts, it is the same.

    Raises as ``start`` does, and Conflict when the run was resumed too often.
    """
    for again in range(_RESUMED_MOST):
        run_id = str(uuid5(NAMESPACE_URL, f"taskyard:resumed:{run.id}:{again}"))
        # Whoever got no answer asks again, perhaps when the run could not be started any more.
        with suppress(TaskNotFound):
            found = await find_run(services, run.parent, run_id)
            if not found.run.ended:
                return found
            continue
        wanted = RunRequest(mode="interactive", resume_from_run_id=run.id)
        # Of two that ask at once, both get the run of the first.
        with suppress(DuplicateTaskId):
            await start(services, run.parent, viewer, wanted, run_id, handoff_resumed=True)
        return await find_run(services, run.parent, run_id)
    raise Conflict(f"The run was resumed {_RESUMED_MOST} times; resume the last of those that came of it.")


async def hold(services: Services, parent: ParentStatus, viewer: str, options: CloudOptions) -> str:
    """Create a run of the task in the cloud that waits to be started; its id. Raises as ``start`` does."""
    run_id = str(uuid4())
    environment = await _environment(services, parent, viewer, options)
    manifest = manifest_of(services.settings, parent, options, run_id, environment=environment)
    await services.core.submit(
        manifest, viewer=viewer, parent=parent.id, told=told_of(options, options.told()), held=True
    )
    services.metrics.submitted.inc()
    return run_id


def told_of(options: RunOptions, state: dict[str, Any], environment: str = "cloud") -> Told:
    """What is told of a run from its beginning."""
    return Told(state=state, branch=options.branch, environment=environment, mode=options.mode or "background")


def chosen(artifacts: Sequence[UploadedArtifact], ids: Sequence[str]) -> list[UploadedArtifact]:
    """The artifacts of these ids. Raises InvalidParameter with the ids of those that are not there."""
    by_id = {artifact.id: artifact for artifact in artifacts}
    if missing := [each for each in ids if each not in by_id]:
        raise InvalidParameter(
            "Some artifacts are not there; upload and finalize them first.", missing_artifact_ids=missing
        )
    return [by_id[each] for each in dict.fromkeys(ids)]


async def first_prompt(
    services: Services, parent: ParentStatus, message: str | None, files: Sequence[UploadedArtifact]
) -> str | None:
    """What the agent is told first: the message, else what the task says, with the files; None for the task's alone."""
    if not files:
        return message
    return await with_files(services, message or parent.description or parent.title, files)


async def with_files(services: Services, text: str, files: Sequence[UploadedArtifact]) -> str:
    """A message with files in its text. Raises InvalidBody for what is no text, or too much of it."""
    size = sum(file.size_bytes for file in files)
    if size > _FILES_BYTES:
        raise InvalidBody.of([Fault("artifact_ids", f"take more than {format_size(_FILES_BYTES)}", "max_length")])
    parts = [text]
    for file in files:
        stream = await services.uploads.open(file)
        content = await to_thread.run_sync(lambda stream=stream: b"".join(stream), limiter=services.readers)  # type: ignore[misc]
        try:
            parts.append(f"The attached file {file.name!r}:\n\n{content.decode()}")
        except UnicodeDecodeError:
            fault = Fault("artifact_ids", f"'{file.name}' is no text, which alone an agent is given here", "invalid")
            raise InvalidBody.of([fault]) from None
    return "\n\n".join(parts)


async def _environment(
    services: Services, parent: ParentStatus, viewer: str, options: RunOptions
) -> Environment | None:
    if options.sandbox_environment_id is None:
        return None
    try:
        return await services.environments.get(parent.project, viewer, options.sandbox_environment_id)
    except NotFound:
        raise InvalidParameter("Invalid sandbox_environment_id", field="sandbox_environment_id") from None


async def _earlier(services: Services, parent: ParentStatus, run_id: str | None) -> FoundRun | None:
    if run_id is None:
        return None
    try:
        return await find_run(services, parent, run_id)
    except TaskNotFound:
        raise InvalidParameter("Invalid resume_from_run_id", field="resume_from_run_id") from None


def _inheriting(wanted: RunRequest, earlier: FoundRun | None) -> CloudOptions:
    """The options, with what an earlier run had where they do not say."""
    options = CloudOptions.model_validate(wanted.model_dump(include=set(RunOptions.model_fields)))
    if earlier is None:
        return options
    before = earlier.run.told.state | {"branch": earlier.run.told.state.get("pr_base_branch")}
    # The adapter, the model and its effort belong together.
    own_model = options.runtime_adapter is not None
    of_model = {"runtime_adapter", "model", "reasoning_effort", "initial_permission_mode"}
    inherited = {
        name: before[name]
        for name in _INHERITED
        if before.get(name) is not None and getattr(options, name) is None and not (own_model and name in of_model)
    }
    # The state of a run is its client's own, and may say what no run can have, or none here.
    for group in (inherited, {name: value for name, value in inherited.items() if name not in of_model}):
        with suppress(ValidationError):
            return CloudOptions.model_validate(options.model_dump() | group)
    return options
