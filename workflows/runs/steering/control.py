"""Claude Code's control protocol, as far as a run speaks it: the lines that are written to the agent's stdin."""

from __future__ import annotations

from typing import Any

from workflows.runs.steering.messages import PermissionAnswer, PermissionDecision, PermissionRequest, PermissionRule

#: What the ids of our own requests begin with.
INTERRUPT = "interrupt-"
SET_MODEL = "set-model-"
SET_PERMISSION_MODE = "set-permission-mode-"
OWN_IDS = (INTERRUPT, SET_MODEL, SET_PERMISSION_MODE)

NOBODY_ANSWERED = "Nobody has answered in time, so this is not permitted. Go on without it."
_DENIED = "The user does not permit this."


def interrupt(control_id: str) -> dict[str, Any]:
    """Stop the turn that is under way."""
    return _request(control_id, subtype="interrupt")


def set_model(control_id: str, model: str) -> dict[str, Any]:
    """Ask another model from the next request on."""
    return _request(control_id, subtype="set_model", model=model)


def set_permission_mode(control_id: str, mode: str) -> dict[str, Any]:
    """Do other things without asking. Claude Code confirms any word here, also one that is none of its modes."""
    return _request(control_id, subtype="set_permission_mode", mode=mode)


def answer(request: PermissionRequest, given: PermissionAnswer) -> dict[str, Any]:
    """The answer to a request of the agent's.

    An empty ``updatedInput`` is the input as the agent has it, of which the host may know only a part.
    """
    if given.decision is PermissionDecision.DENY:
        return denial(request.request_id, given.message or _DENIED)
    response: dict[str, Any] = {"behavior": "allow", "updatedInput": {}}
    if given.answers:
        response["updatedInput"] = {**request.input, "answers": given.answers}
    if given.decision is PermissionDecision.ALLOW_ALWAYS:
        # For the session: Claude Code would write other rules into files of the workspace.
        response["updatedPermissions"] = [
            {"type": "addRules", "rules": [_rule(rule)], "behavior": "allow", "destination": "session"}
            for rule in request.rules or [PermissionRule(tool=request.tool)]
        ]
    return _response(request.request_id, response)


def denial(request_id: str, message: str) -> dict[str, Any]:
    """The answer that what the agent has asked for is not permitted."""
    return _response(request_id, {"behavior": "deny", "message": message})


def _rule(rule: PermissionRule) -> dict[str, str]:
    return {"toolName": rule.tool} | ({"ruleContent": rule.content} if rule.content else {})


def _request(control_id: str, **request: Any) -> dict[str, Any]:
    return {"type": "control_request", "request_id": control_id, "request": request}


def _response(request_id: str, response: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request_id, "response": response},
    }
