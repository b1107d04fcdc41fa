"""The run log as people read it: what Claude says, which tools it uses and what they answer, states, cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cli.streams import clean
from foundation.units import format_seconds, format_size

if TYPE_CHECKING:
    from client import LogLine

_RESULT_LINES = 6
_TEXT_LINES = 400
_INPUT_CHARS = 160

# The argument of each tool that says what it is about.
_MAIN_FIELDS = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt")

_SCRIPTED_MODEL = "taskyard-scripted-model"
# The model that Claude Code names for messages of its own, such as errors.
_OWN_WORDS = "<synthetic>"

STATE_COLOURS = {
    "completed": "green",
    "failed": "red",
    "failed_preserved": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "awaiting_decision": "magenta",
}


class LogRenderer:
    """Prints log lines on a console as they come."""

    def __init__(self, console: Console, *, timestamps: bool = False) -> None:
        self._console = console
        self._timestamps = timestamps
        self._at = ""
        # Claude Code works a cost out of list prices, whoever answered; it means something for a real model only.
        self._model_is_real = False

    def show(self, line: LogLine) -> None:
        """Print one line of the log; lines that mean nothing to a person print nothing."""
        if self._timestamps:
            self._at = line.timestamp.astimezone().strftime("%H:%M:%S ")
        if line.stream == "event":
            self._event(line.event)
        elif line.stream == "stderr":
            self._print(Text(clean(line.data or "").rstrip("\n"), "yellow"), mark="!", mark_style="yellow")
        elif line.stream == "told":
            self._print(Text(clean(line.data or "").rstrip("\n"), "dim"), mark="»", mark_style="dim")
        else:
            self._output((line.data or "").rstrip("\n"))

    def _output(self, data: str) -> None:
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._print(Text(clean(data)))
            return
        match message.get("type"):
            case "system" if message.get("subtype") == "init":
                version = message.get("claude_code_version", "")
                self._print(Text(clean(f"Claude Code {version}, model {message.get('model')}"), "dim"))
            case "assistant":
                inner = message.get("message")
                answered = inner.get("model") if isinstance(inner, dict) else None
                self._model_is_real |= isinstance(answered, str) and answered not in {_SCRIPTED_MODEL, _OWN_WORDS}
                self._assistant(message)
            case "user":
                self._user(message)
            case "result":
                self._result(message)

    def _assistant(self, message: dict[str, Any]) -> None:
        for block in _blocks(message):
            match block.get("type"):
                case "text":
                    text = clean(str(block.get("text", ""))).strip()
                    if text:
                        self._print(Text(_shortened(text, _TEXT_LINES)), mark="●", mark_style="bold")
                case "tool_use":
                    name = clean(str(block.get("name")))
                    self._print(Text.assemble((name, "bold cyan"), " ", _tool_input(block.get("input"))), mark="▸")

    def _user(self, message: dict[str, Any]) -> None:
        for block in _blocks(message):
            if block.get("type") == "tool_result":
                style = "red" if block.get("is_error") else "dim"
                text = clean(_plain(block.get("content"))).strip("\n")
                if text.strip():
                    self._print(Text(_shortened(text, _RESULT_LINES), style), mark=" ")
            elif block.get("type") == "text":
                self._print(Text(clean(str(block.get("text", ""))).strip(), "bold"), mark="»", mark_style="bold")

    def _result(self, message: dict[str, Any]) -> None:
        failed = bool(message.get("is_error"))
        parts = [f"{message.get('num_turns', '?')} turns"]
        if isinstance(message.get("duration_ms"), int | float):
            parts.append(format_seconds(message["duration_ms"] / 1000))
        usage = message.get("usage")
        if isinstance(usage, dict):
            parts.append(f"{usage.get('input_tokens', 0)} tokens in, {usage.get('output_tokens', 0)} out")
        if isinstance(message.get("total_cost_usd"), int | float) and self._model_is_real:
            parts.append(f"${message['total_cost_usd']:.4f}")
        kind = str(message.get("subtype", "error"))
        # A request that the provider refused ends with an error of the kind "success".
        named = "Claude Code ended with an error" if kind == "success" else kind
        word = named if failed else "Claude Code is done"
        style = "bold red" if failed else "bold"
        self._print(Text.assemble((clean(word), style), ": ", clean(", ".join(parts))), mark="■")
        if failed and message.get("result"):
            self._print(Text(clean(str(message["result"])), "red"))

    def _event(self, event: dict[str, Any]) -> None:
        self._model_is_real |= event.get("scripted") is False
        text = clean(str(event.get("message") or ""))
        match event.get("type"):
            case "completed":
                return
            case "state_change":
                state = clean(str(event.get("state")))
                self._print(Text.assemble((state, STATE_COLOURS.get(state, "blue")), "  ", (text, "dim")), mark="◆")
            case "user_message":
                self._print(Text(_shortened(text, _TEXT_LINES), "bold"), mark="»", mark_style="bold")
            case "network" if event.get("verdict") in {"blocked", "failed"}:
                self._print(Text(text, "yellow"), mark="!", mark_style="yellow")
            case kind:
                self._print(Text(text or clean(str(kind)), "dim"), mark="·")

    def _print(self, text: Text, mark: str = " ", mark_style: str = "dim") -> None:
        lines = text.split("\n", allow_blank=True)
        for index, line in enumerate(lines):
            first = index == 0
            at = Text(self._at if first else " " * len(self._at), "dim")
            lead = Text(f"{mark if first else ' '} ", mark_style)
            self._console.print(at + lead + line, soft_wrap=True, highlight=False, emoji=False)


def progress_line(output_bytes: int, tool_calls: int, current_tool: str | None) -> str:
    """Live figures of the agent in a few words."""
    words = [f"{tool_calls} tool call{'' if tool_calls == 1 else 's'}", f"{format_size(output_bytes)} of output"]
    tool = " ".join(clean(current_tool or "").split())
    return ", ".join(([f"now {tool}"] if tool else []) + words)


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    inner = message.get("message")
    content = inner.get("content") if isinstance(inner, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _tool_input(value: Any) -> str:
    """A tool's input in one short line."""
    if not isinstance(value, dict):
        return ""
    main = next((value[key] for key in _MAIN_FIELDS if isinstance(value.get(key), str)), None)
    text = main if main is not None else json.dumps(value, ensure_ascii=False)
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= _INPUT_CHARS else flat[: _INPUT_CHARS - 1] + "…"


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or f"[{part.get('type')}]") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _shortened(text: str, most: int) -> str:
    """The beginning, and of what is left out the end: that is where programs say how it went."""
    lines = text.splitlines()
    if len(lines) <= most + 1:
        return text
    end = most // 3
    return "\n".join([*lines[: most - end], f"… {len(lines) - most} more lines", *lines[len(lines) - end :]])
