"""The route ``command``: what is said to the agent of a run in the cloud, as JSON-RPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field, StrictFloat, StrictInt, StrictStr, ValidationError, field_validator

from api.deps import Services, ServicesOf
from api.posthog.errors import told_as_view
from api.posthog.forms import Form, read_form
from api.posthog.lookup import FoundRun, RunOf, opened_by_token
from api.posthog.paths import RUN
from api.posthog.runs import starting
from api.posthog.tokens import CONNECTION
from api.runs.steering import steering
from foundation.errors import Conflict, InvalidBody, InvalidParameter, MachineUnavailable, SessionClosed
from foundation.faults import Fault
from workflows.runs.messages import MESSAGE_ID_CHARS, UserMessage
from workflows.runs.states import TaskState
from workflows.runs.steering.messages import PermissionAnswer, PermissionDecision

router = APIRouter(tags=["runs"])

# How clients write the name of a method.
_PREFIXES = ("__posthog/", "_posthog/", "posthog/")
_METHODS = (
    "user_message", "cancel", "close", "permission_response", "set_config_option", "queue_get", "queue_clear",
)  # fmt: skip
# The agent, or its machine, refuses what was asked; and the parameters of the method are none.
_REFUSED, _INVALID = -32000, -32602
# What agents' clients call the answers to a question.
_DECISIONS: Mapping[str, PermissionDecision] = {
    "allow": PermissionDecision.ALLOW,
    "allow_once": PermissionDecision.ALLOW,
    "allow_always": PermissionDecision.ALLOW_ALWAYS,
    "deny": PermissionDecision.DENY,
    "reject": PermissionDecision.DENY,
    "reject_once": PermissionDecision.DENY,
    "reject_always": PermissionDecision.DENY,
    "reject_with_feedback": PermissionDecision.DENY,
}
_MODEL, _MODE = "model", "mode"

Filled = Annotated[str, Field(min_length=1, max_length=100_000)]


class _Command(Form):
    jsonrpc: Literal["2.0"]
    method: Annotated[str, Field(max_length=64)]
    params: dict[str, Any] = {}
    id: StrictStr | StrictInt | StrictFloat | None = None

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        for prefix in _PREFIXES:
            value = value.removeprefix(prefix)
        if value not in _METHODS:
            raise ValueError(f'"{value[:64]}" is not a valid choice.')
        return value


class _Message(Form):
    content: Annotated[str, Field(max_length=262_144)] = ""
    artifact_ids: starting.ArtifactIds = []
    message_id: Annotated[str, Field(max_length=MESSAGE_ID_CHARS)] | None = Field(None, alias="messageId")


class _Permission(Form):
    request_id: Filled = Field(alias="requestId")
    option_id: Filled = Field(alias="optionId")
    custom_input: str | None = Field(None, alias="customInput")
    answers: dict[str, str] = {}


class _Option(Form):
    config_id: Filled = Field(alias="configId")
    value: Filled


@router.post(
    f"{RUN}/command",
    summary="Say something to the agent of a run",
    dependencies=[
        opened_by_token(CONNECTION),
        Depends(
            told_as_view(
                InvalidParameter,
                machine_unavailable=400,
                engine_unavailable=502,
                service_unavailable=502,
                host_unreachable=502,
                guest_unreachable=502,
                machine_lost=502,
            )
        ),
    ],
)
async def command(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A message is taken and answered at once; the rest is answered when the agent has confirmed it.

    What the agent refuses is an ``error`` of an answer with status 200.
    """
    said = await read_form(request, _Command)
    _check_sandbox(run)
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": said.id}
    try:
        return answer | {"result": await _carry_out(said, run, services)}
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if said.method == "user_message":
            raise InvalidBody.of([Fault(place or "params", first["msg"], first["type"])]) from None
        return answer | {"error": {"code": _INVALID, "message": f"{place}: {first['msg']}"}}
    except Conflict as error:
        if type(error) is not Conflict:
            # The run, or its agent's session, has ended.
            raise
        return answer | {"error": {"code": _REFUSED, "message": error.message}}


def _check_sandbox(run: FoundRun) -> None:
    """Raise MachineUnavailable for a run that no machine is meant for, SessionClosed for one that has ended."""
    if run.run.ended and run.cloud is not None:
        raise SessionClosed("The run has ended; go on with it in a new one, and send this again.")
    if run.cloud is None:
        raise MachineUnavailable("No active sandbox for this task run")


async def _carry_out(said: _Command, run: FoundRun, services: Services) -> dict[str, Any]:
    core, params = services.core, said.params
    if said.method == "user_message":
        return await _send(said, run, services)
    if run.cloud is not None and run.cloud.state is not TaskState.RUNNING:
        raise MachineUnavailable("No active sandbox for this task run: its agent does not run yet, or sleeps.")
    done: dict[str, Any]
    match said.method:
        case "cancel":
            await steering.interrupt(core, run.id)
            done = {"cancelled": True}
        case "close":
            await core.close_session(run.id)
            done = {"closed": True}
        case "permission_response":
            await steering.answer(core, run.id, await _answer(_Permission.model_validate(params), run, services))
            done = {"resolved": True}
        case "set_config_option":
            done = await _configure(_Option.model_validate(params), run, services)
        case "queue_get":
            waiting = await steering.messages(core, run.id)
            done = {"messages": [{"id": each.id, "content": each.text} for each in waiting.messages]}
        case _:
            done = {"cleared": (await steering.clear_messages(core, run.id)).cleared}
    return done


async def _send(said: _Command, run: FoundRun, services: Services) -> dict[str, Any]:
    message = _Message.model_validate(said.params)
    if not message.content.strip() and not message.artifact_ids:
        raise InvalidBody.of([Fault("params.content", "This field may not be blank.", "blank")])
    files = starting.chosen(run.artifacts, message.artifact_ids)
    text = await starting.with_files(services, message.content, files) if files else message.content
    # A number is what simple clients give every request, and so tells no repetition.
    message_id = message.message_id or (said.id if isinstance(said.id, str) else None)
    await services.core.send_message(run.id, UserMessage(text=text, id=message_id and message_id[:MESSAGE_ID_CHARS]))
    return {"queued": True}


async def _answer(given: _Permission, run: FoundRun, services: Services) -> PermissionAnswer:
    """The answer as the core takes it: options by their ids here, or as the agent's clients call them."""
    decision = _DECISIONS.get(given.option_id)
    answers = dict(given.answers)
    if decision is None:
        # One of the options of a question that the agent asks in its own words.
        open_requests = await steering.permission_requests(services.core, run.id)
        asked = next((each for each in open_requests if each.request_id == given.request_id), None)
        questions = asked.questions() if asked else []
        if not questions:
            raise Conflict(f"'{given.option_id[:80]}' is no option of this request.")
        decision = PermissionDecision.ALLOW
        answers.setdefault(questions[0], given.custom_input or given.option_id)
    return PermissionAnswer(request_id=given.request_id, decision=decision, message=given.custom_input, answers=answers)


async def _configure(wanted: _Option, run: FoundRun, services: Services) -> dict[str, Any]:
    if wanted.config_id not in {_MODEL, _MODE}:
        raise Conflict(f"'{wanted.config_id[:80]}' is no option of this agent; there is {_MODEL} and {_MODE}.")
    await steering.configure(
        services.core,
        run.id,
        model=wanted.value if wanted.config_id == _MODEL else None,
        permission_mode=wanted.value if wanted.config_id == _MODE else None,
    )
    return {"configOptions": [{"id": wanted.config_id, "currentValue": wanted.value}]}
