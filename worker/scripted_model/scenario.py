"""Scenario files: what the scripted model says and does, turn by turn, and which turn a conversation has reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from foundation.errors import InvalidParameter

BUILT_IN = Path(__file__).with_name("scenarios")
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
# Claude Code appends a message that arrives while a tool runs to the tool's result, as a reminder in these words.
_MID_TURN = re.compile(
    r"<system-reminder>\s*The user sent a new message while you were working:\n"
    r"(.*?)\n*(?:IMPORTANT:|</system-reminder>)",
    re.DOTALL,
)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
    return pattern


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolCall(_Part):
    """One use of a tool of Claude Code's. In strings of ``input``, ``{{n}}`` is the number of the repetition."""

    name: str = Field(min_length=1)
    input: dict[str, Any] = {}


class ModelError(_Part):
    """An error answer of the API: HTTP status, Anthropic's error type and message."""

    status: int = Field(ge=400, le=599)
    type: str = "api_error"
    message: str = "The scenario asks for this error."


class Turn(_Part):
    """One answer of the model: thoughts, text, tool calls or several of them, or an error instead.

    ``delay`` is the time in seconds over which the answer is streamed. ``repeat`` plays the turn that many times.
    """

    thinking: str | None = None
    text: str | None = None
    tools: list[ToolCall] = []
    delay: float = Field(0, ge=0, le=600)
    repeat: int = Field(1, ge=1, le=10_000)
    error: ModelError | None = None

    @model_validator(mode="after")
    def _answers(self) -> Turn:
        if self.error and (self.thinking or self.text or self.tools):
            raise ValueError("a turn with 'error' has neither 'text' nor 'tools', and no 'thinking'")
        if not (self.error or self.text or self.tools):
            raise ValueError("a turn needs 'text', 'tools' or 'error'")
        return self


class MessageReply(_Part):
    """What is played after a further user message that ``match`` (a regular expression) finds."""

    match: Annotated[str, AfterValidator(_compiles)]
    turns: list[Turn] = Field(min_length=1)


class Scenario(_Part):
    """One script. It is played when the first user message contains ``when``; without ``when``, for any message."""

    name: str = Field(min_length=1)
    description: str = ""
    when: str | None = Field(None, min_length=1)
    turns: list[Turn] = Field(min_length=1)
    on_message: list[MessageReply] = []


@dataclass(frozen=True)
class Conversation:
    """What is in a request's messages: each user text with the number of model turns before it, and all turns."""

    user_texts: list[tuple[int, str]]
    turns: int

    @property
    def first_message(self) -> str:
        return self.user_texts[0][1] if self.user_texts else ""


@dataclass(frozen=True)
class Cue:
    """The turn to play next. ``number`` counts all turns from 0, ``repetition`` those of a repeated turn from 1."""

    scenario: str
    number: int
    turn: Turn
    repetition: int = 1


FALLBACK = Scenario(
    name="fallback",
    turns=[
        Turn(
            text="I am the scripted model of Taskyard: I play prepared scenarios, and none of them fits this prompt. "
            "I end here without doing anything. Set ANTHROPIC_API_KEY to use the real model, or TASKYARD_SCENARIO to "
            "name a scenario file of your own."
        )
    ],
)
_OVER = Turn(text="The scenario has no further turns; the scripted model has nothing to add.")


def load_scenarios(chosen: Path | None) -> list[Scenario]:
    """The scenarios of a file or directory, then the built-in ones. Raises InvalidParameter with every fault."""
    sources = list(_files(chosen)) if chosen else []
    scenarios = [read_scenario(path) for path in [*sources, *_files(BUILT_IN)]]
    if chosen and not sources:
        raise InvalidParameter(f"TASKYARD_SCENARIO names {chosen}, which holds no .yaml file.")
    return scenarios


def read_scenario(path: Path) -> Scenario:
    """One scenario file. Raises InvalidParameter whose details list every fault as ``{field, message}``."""
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidParameter(f"Scenario {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise InvalidParameter(f"Scenario {path} is not YAML: {error}") from error
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        faults = [
            {
                "field": ".".join(str(part) for part in item["loc"]),
                "message": item["msg"].removeprefix("Value error, "),
            }
            for item in error.errors(include_url=False)
        ]
    sentence = "; ".join(f"{fault['field'] or 'the file'}: {fault['message']}" for fault in faults)
    raise InvalidParameter(f"Scenario {path} is not valid: {sentence}", file=str(path), errors=faults)


def choose_scenario(scenarios: Sequence[Scenario], first_message: str) -> Scenario:
    """The first scenario whose ``when`` is in the message, else the first without ``when``, else ``FALLBACK``."""
    for scenario in scenarios:
        if scenario.when and scenario.when in first_message:
            return scenario
    return next((scenario for scenario in scenarios if scenario.when is None), FALLBACK)


def read_conversation(messages: Sequence[Any]) -> Conversation:
    """Reads the ``messages`` of an API request; consecutive assistant messages are one turn of the model."""
    texts: list[tuple[int, str]] = []
    turns = 0
    previous = None
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            turns += previous != "assistant"
        else:
            texts.extend((turns, text) for text in _spoken(message.get("content")))
        previous = role
    return Conversation(texts, turns)


def next_cue(scenario: Scenario, conversation: Conversation) -> Cue:
    """The turn that follows the conversation: a pure function, so that a restarted model goes on where it was.

    The last further user message that ``on_message`` matches decides: its turns replace what was left of the script.
    Other messages take the script's next turn.
    """
    script, begun = scenario.turns, 0
    for turns_before, text in conversation.user_texts[1:]:
        reply = next((reply for reply in scenario.on_message if re.search(reply.match, text)), None)
        if reply:
            script, begun = reply.turns, turns_before
    left = conversation.turns - begun
    for turn in script:
        if left < turn.repeat:
            return Cue(scenario.name, conversation.turns, turn, left + 1)
        left -= turn.repeat
    return Cue(scenario.name, conversation.turns, _OVER)


def _files(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(source.glob("*.yaml"))
    else:
        yield source


def _spoken(content: Any) -> Iterator[str]:
    """What the user wrote in a message: reminders of Claude Code and the results of tools are left out."""
    for block in _text_blocks(content):
        if block.get("type") == "tool_result":
            for inner in _text_blocks(block.get("content")):
                yield from (found.strip() for found in _MID_TURN.findall(inner.get("text", "")))
        elif block.get("type") == "text":
            text = block.get("text", "")
            yield from (found.strip() for found in _MID_TURN.findall(text))
            own = _REMINDER.sub("", text).strip()
            if own:
                yield own


def _text_blocks(content: Any) -> list[dict[str, Any]]:
    """A message's content, which is a list of blocks or one string."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []
