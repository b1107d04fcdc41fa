"""What the agent says over Claude Code's control protocol: what it asks, what it takes back, and what it confirms.

Its lines are the guest's word, and any number of them may be forged: what is kept of them has limits, and what is asked
past these is denied by the follower, without history.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import accumulate, islice
from typing import Any, TypeGuard

from workflows.runs.steering.control import INTERRUPT, OWN_IDS
from workflows.runs.steering.messages import (
    QUESTION_TOOL,
    REQUEST_ID_CHARS,
    AgentSaid,
    ControlAnswer,
    PermissionDecision,
    PermissionOption,
    PermissionRequest,
    PermissionRule,
)

#: The event of a request in the run's log, and that of what became of it.
REQUEST = "permission_request"
RESOLVED = "permission_resolved"

# Requests of one run that users are asked, and that may be open at once.
ASKED_MOST = 500
OPEN_MOST = 50
# Requests past these that are denied; an agent that asks more gets no answer.
DENIED_MOST = 2_000
# Confirmations that are kept: more than can be asked for.
_ANSWERS_MOST = 1_200
# Of each kind in one signal. A request has some 50 KB at most, and Temporal takes 2 MiB.
_TOLD_MOST = 20

# Of a tool's input that is shown: characters of each text, bytes of all as JSON, members, and depth.
_TEXT_CHARS = 4_000
_INPUT_BYTES = 16_000
_MEMBERS_MOST = 100
_DEPTH_MOST = 10
# What a value costs beside its text: quotes, brackets, a comma; and a number.
_VALUE_BYTES, _NUMBER_BYTES = 4, 24
# Of the rules that a request brings: how many are looked at, how many are kept, and their bytes as JSON.
_RULES_READ = 400
_RULES_MOST = 20
_RULES_BYTES = 8_000
_SENTENCE_CHARS = 500
_NUMBER_MOST = 2**53
_NO_MODE_OF_ITS_OWN = frozenset({QUESTION_TOOL, "ExitPlanMode"})


class AgentControl:
    """What one agent has said so far; the same lines give the same, so a new attempt reads them again.

    ``open`` are the requests that the agent, by its own output, waits for. ``redact`` takes known secrets out of texts.
    """

    def __init__(self, redact: Callable[[str], str] = lambda text: text) -> None:
        self.open: dict[str, PermissionRequest] = {}
        #: Whether an interrupt of ours was confirmed in the turn that is under way.
        self.interrupted = False
        self._redact = redact
        self._seen: set[str] = set()
        self._asked = 0
        self._withdrawn: list[str] = []
        self._excess: dict[str, str | None] = {}
        self._denied = 0
        self._answers: dict[str, ControlAnswer] = {}
        self._told: set[str] = set()

    def take(self, event: dict[str, Any], at: datetime, *, in_turn: bool) -> None:
        """One event of the agent's stdout."""
        match event.get("type"):
            case "control_request":
                self._take_request(event, at)
            case "control_cancel_request":
                self._take_back(event.get("request_id"))
            case "control_response":
                self._take_answer(event.get("response"), in_turn=in_turn)
            case "user":
                self._take_results(event)

    def news(self) -> AgentSaid:
        """What was said and not told yet, as much as one signal takes; of requests, those that are open.

        It counts as told with that.
        """
        asked = [each for each in self.open.values() if each.request_id not in self._told][:_TOLD_MOST]
        answered = [each for each in self._answers.values() if each.id not in self._told][:_TOLD_MOST]
        withdrawn, self._withdrawn = self._withdrawn[:_TOLD_MOST], self._withdrawn[_TOLD_MOST:]
        self._told.update(each.request_id for each in asked)
        self._told.update(each.id for each in answered)
        return AgentSaid(asked=asked, withdrawn=withdrawn, answered=answered)

    def excess(self) -> list[str]:
        """Requests past the limits that wait, as far as they are still answered; they count as answered with that."""
        left = DENIED_MOST - self._denied
        found = list(self._excess)[: max(left, 0)]
        self._denied += len(found)
        self._excess.clear()
        return found

    # --- how

    def _take_request(self, event: dict[str, Any], at: datetime) -> None:
        request_id, request = event.get("request_id"), event.get("request")
        if not _is_id(request_id) or not isinstance(request, dict) or request_id in self._seen:
            return
        if request.get("subtype") != "can_use_tool" or len(self._seen) >= ASKED_MOST + DENIED_MOST:
            return
        self._seen.add(request_id)
        if self._asked >= ASKED_MOST or len(self.open) >= OPEN_MOST:
            self._excess[request_id] = _text_or_none(request.get("tool_use_id"))
            return
        self._asked += 1
        self.open[request_id] = self._read(request_id, request, at)

    def _take_back(self, request_id: Any) -> None:
        if not isinstance(request_id, str):
            return
        self._excess.pop(request_id, None)
        if self.open.pop(request_id, None) is not None:
            self._withdrawn.append(request_id)

    def _take_answer(self, response: Any, *, in_turn: bool) -> None:
        if not isinstance(response, dict) or not _is_id(control_id := response.get("request_id")):
            return
        if not control_id.startswith(OWN_IDS) or len(self._answers) >= _ANSWERS_MOST or control_id in self._answers:
            return
        failed = response.get("subtype") != "success"
        error = (self._sentence(response.get("error")) or "it gave no reason") if failed else None
        self._answers[control_id] = ControlAnswer(id=control_id, error=error, in_turn=in_turn)
        if control_id.startswith(INTERRUPT) and in_turn and error is None:
            self.interrupted = True

    def _take_results(self, event: dict[str, Any]) -> None:
        """A tool that was asked about has a result: whoever answered, nothing waits any more."""
        if not self.open and not self._excess:
            return
        message = event.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        blocks = content if isinstance(content, list) else []
        ended = {_text_or_none(block.get("tool_use_id")) for block in blocks if isinstance(block, dict)} - {None}
        self.open = {name: each for name, each in self.open.items() if each.tool_use_id not in ended}
        self._excess = {name: tool_use for name, tool_use in self._excess.items() if tool_use not in ended}

    def _read(self, request_id: str, request: dict[str, Any], at: datetime) -> PermissionRequest:
        tool = self._sentence(request.get("tool_name")) or "?"
        shown = _Shown(self._redact)
        given = request.get("input")
        tool_input = shown.of(given) if isinstance(given, dict) else {}
        rules, rules_cut = self._rules(None if tool in _NO_MODE_OF_ITS_OWN else request.get("permission_suggestions"))
        return PermissionRequest(
            request_id=request_id,
            tool=tool,
            input=tool_input,
            input_cut=shown.cut,
            description=self._sentence(request.get("description")),
            tool_use_id=_text_or_none(request.get("tool_use_id")),
            rules=rules or ([] if tool in _NO_MODE_OF_ITS_OWN else [PermissionRule(tool=tool)]),
            rules_cut=rules_cut,
            options=list(_options(tool, rules)),
            asked_at=at,
        )

    def _rules(self, suggestions: Any) -> tuple[list[PermissionRule], bool]:
        """The rules among what Claude Code suggests to allow from now on, as many as fit; and whether others did not.

        A rule that was cut or redacted would allow something else, and is left out whole.
        """
        suggested = list(islice(_suggested(suggestions), _RULES_READ + 1))
        kept: list[PermissionRule] = []
        left = _RULES_BYTES
        for rule in suggested[:_RULES_READ]:
            tool, content = (rule.get("toolName"), rule.get("ruleContent")) if isinstance(rule, dict) else (None, None)
            if len(kept) == _RULES_MOST or not _is_id(tool):
                continue
            if content is not None and not (isinstance(content, str) and content == self._clean(content)):
                continue
            found = PermissionRule(tool=tool, content=content)
            if (size := len(found.model_dump_json().encode())) <= left:
                left -= size
                kept.append(found)
        return kept, len(kept) < len(suggested)

    def _clean(self, text: str) -> str:
        return self._redact(text).encode(errors="replace").decode()[:_SENTENCE_CHARS]

    def _sentence(self, value: Any) -> str | None:
        return (self._clean(value) or None) if isinstance(value, str) else None


class _Shown:
    """A tool's input as it is shown: passes through JSON, without known secrets, of limited size."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self.cut = False
        self._redact = redact
        self._left = _INPUT_BYTES

    def of(self, value: dict[str, Any]) -> dict[str, Any]:
        """The input so far as it fits."""
        return {self._text(key): self._value(each, 1) for key, each in self._few(list(value.items()))}

    def _value(self, value: Any, depth: int) -> Any:
        if depth > _DEPTH_MOST or self._left <= 0:
            self.cut = True
            return "…"
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict | list):
            self._left -= _VALUE_BYTES
        if isinstance(value, dict):
            return {self._text(str(key)): self._value(each, depth + 1) for key, each in self._few(list(value.items()))}
        if isinstance(value, list):
            return [self._value(each, depth + 1) for each in self._few(value)]
        self._left -= _NUMBER_BYTES
        known = isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= _NUMBER_MOST)
        return value if known else None

    def _few(self, members: list[Any]) -> list[Any]:
        self.cut = self.cut or len(members) > _MEMBERS_MOST
        return members[:_MEMBERS_MOST]

    def _text(self, text: str) -> str:
        if self._left <= 0:
            self.cut = True
            return "…"
        clean = self._redact(text).encode(errors="replace").decode()
        kept = _beginning(clean[:_TEXT_CHARS], self._left)
        self._left -= _json_bytes(kept) + _VALUE_BYTES
        if len(kept) < len(clean):
            self.cut = True
            return f"{kept}…"
        return kept


def _json_bytes(text: str) -> int:
    """The bytes of a text within JSON, as Temporal stores it."""
    return len(json.dumps(text, ensure_ascii=False).encode()) - len('""')


def _beginning(text: str, most: int) -> str:
    """As much of a text as has ``most`` bytes within JSON."""
    return text if _json_bytes(text) <= most else text[: bisect_right(list(accumulate(map(_json_bytes, text))), most)]


def _suggested(suggestions: Any) -> Iterator[Any]:
    """What Claude Code suggests as rules that allow something; each may be anything."""
    for each in suggestions if isinstance(suggestions, list) else []:
        if isinstance(each, dict) and each.get("type") == "addRules" and each.get("behavior") == "allow":
            rules = each.get("rules")
            yield from rules if isinstance(rules, list) else []


def says_nothing_of_the_turn(event: dict[str, Any]) -> bool:
    """Whether an event comes while the agent waits as well as while it works: confirmations, and what they change."""
    match event.get("type"):
        case "control_response" | "control_cancel_request" | "keep_alive":
            return True
        case "system":
            return event.get("subtype") == "status"
        case "user":
            return event.get("isReplay") is True
    return False


def _options(tool: str, rules: list[PermissionRule]) -> Iterator[PermissionOption]:
    answers = tool == QUESTION_TOOL
    yield PermissionOption(id=PermissionDecision.ALLOW.value, name="Answer" if answers else "Allow")
    if tool not in _NO_MODE_OF_ITS_OWN:
        always = ", ".join(map(str, rules)) or tool
        yield PermissionOption(id=PermissionDecision.ALLOW_ALWAYS.value, name=f"Always allow {always}")
    yield PermissionOption(id=PermissionDecision.DENY.value, name="Deny")


def _is_id(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= REQUEST_ID_CHARS and value.isascii() and value.isprintable()


def _text_or_none(value: Any) -> str | None:
    return value if _is_id(value) else None
