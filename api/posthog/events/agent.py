"""What Claude Code says in stream-json, as updates of its session.

The output is the guest's word: what has not the form that it should have gives nothing, and never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from api.posthog.events import tools
from api.posthog.events.bodies import Body, Json, extension, object_of, objects_of, text_block, text_of, update

_AGENT = "claude"
_STOP_REASONS = frozenset({"end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled"})
_STOPPED_BY = {"error_max_turns": "max_turn_requests", "error_max_budget_usd": "max_turn_requests"}
_INTERRUPTIONS = frozenset({"aborted_streaming", "aborted_tools"})
# Tokens that a model's context holds, where its name does not say otherwise.
_CONTEXT, _LONG_CONTEXT = 200_000, 1_000_000
_RESULTS = frozenset(
    {
        "tool_result",
        "mcp_tool_result",
        "server_tool_result",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
    }
)
_CALLS = frozenset({"tool_use", "mcp_tool_use", "server_tool_use"})


def agent_line(line: Json, run_id: str) -> Iterator[Body]:
    """What one line of stdout that is JSON tells. A kind that is not known tells nothing."""
    kind = _LINES.get(text_of(line.get("type")) or "")
    if kind is not None:
        yield from kind(line, run_id)


def _system(line: Json, run_id: str) -> Iterator[Body]:
    subtype = text_of(line.get("subtype"))
    mode = text_of(line.get("permissionMode"))
    if subtype == "init":
        yield extension(
            "sdk_session",
            taskRunId=run_id,
            sessionId=text_of(line.get("session_id")),
            adapter=_AGENT,
            agentVersion=text_of(line.get("claude_code_version")),
        )
        if mode:
            yield update("current_mode_update", currentModeId=mode)
        commands = line.get("slash_commands")
        names = [name for name in commands if isinstance(name, str)] if isinstance(commands, list) else []
        if names:
            yield update("available_commands_update", availableCommands=[_command(name) for name in names])
    elif subtype == "status":
        if mode:
            yield update("current_mode_update", currentModeId=mode)
        if status := text_of(line.get("status")):
            yield extension("status", status=status)
    elif subtype == "compact_boundary":
        about = object_of(line.get("compact_metadata"))
        yield extension("compact_boundary", trigger=about.get("trigger"), preTokens=about.get("pre_tokens"))
    elif subtype == "task_notification":
        yield extension(
            "task_notification",
            taskId=line.get("task_id"),
            status=line.get("status"),
            summary=line.get("summary"),
            outputFile=line.get("output_file"),
        )


def _assistant(line: Json, _: str) -> Iterator[Body]:
    parent = _parent(line)
    message = object_of(line.get("message"))
    said = False
    for block in objects_of(message.get("content")):
        kind = text_of(block.get("type"))
        said = said or kind != "thinking"
        if kind == "text" and isinstance(block.get("text"), str):
            if block["text"]:
                yield update("agent_message", content=text_block(block["text"]), _meta=_meta(parent))
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            if block["thinking"]:
                yield update("agent_thought_chunk", content=text_block(block["thinking"]), _meta=_meta(parent))
        elif kind in _CALLS and isinstance(block.get("id"), str) and isinstance(block.get("name"), str):
            yield from _call(block["id"], block["name"], object_of(block.get("input")), parent)
    if said and parent is None and (used := sum(_used(message).values())):
        model = text_of(message.get("model")) or ""
        yield update("usage_update", used=used, size=_LONG_CONTEXT if model.endswith("[1m]") else _CONTEXT)


def _call(call_id: str, name: str, arguments: Json, parent: str | None) -> Iterator[Body]:
    shown = tools.described(name, call_id, arguments)
    yield update("tool_call", **shown, status="pending", _meta=_meta(parent, toolName=name))
    if name == "TodoWrite" and (entries := tools.plan(arguments.get("todos"))) is not None:
        yield update("plan", entries=entries)


def _user(line: Json, _: str) -> Iterator[Body]:
    # What users say is told by the run's own events; here are the results of tools.
    parent = _parent(line)
    for block in objects_of(object_of(line.get("message")).get("content")):
        if text_of(block.get("type")) not in _RESULTS or not isinstance(block.get("tool_use_id"), str):
            continue
        failed = block.get("is_error") is True
        raw = block.get("content")
        yield update(
            "tool_call_update",
            toolCallId=block["tool_use_id"],
            status="failed" if failed else "completed",
            content=tools.outcome(raw),
            rawOutput={
                "content": [text_block(raw)] if isinstance(raw, str) else objects_of(raw),
                "isError": failed,
            },
            _meta=_meta(parent),
        )
    # The list of what is to be done, where the agent has looked at it as a whole.
    if parent is None and (entries := tools.plan(object_of(line.get("tool_use_result")).get("tasks"))) is not None:
        yield update("plan", entries=entries)


def _result(line: Json, _: str) -> Iterator[Body]:
    reason = _stop_reason(line)
    said = text_of(line.get("result")) or ", ".join(filter(None, map(text_of, _list(line.get("errors")))))
    if reason == "error":
        message = said or text_of(line.get("subtype")) or "the agent ended its turn with an error"
        yield extension("error", source="agent_turn", stopReason=reason, message=message, error=message)
    cost = line.get("total_cost_usd")
    amount = cost if isinstance(cost, int | float) and not isinstance(cost, bool) else None
    yield extension("usage_update", used=_used(line), cost=amount, contextWindow=_window(line) or None)
    yield extension("turn_complete", stopReason=reason)


def _stop_reason(line: Json) -> str:
    subtype = text_of(line.get("subtype")) or ""
    given = text_of(line.get("stop_reason"))
    if subtype in _STOPPED_BY:
        return _STOPPED_BY[subtype]
    if text_of(line.get("terminal_reason")) in _INTERRUPTIONS:
        return "cancelled"
    if line.get("is_error") is True or subtype != "success":
        return "error"
    return given if given in _STOP_REASONS else "end_turn"


def _used(about: Json) -> dict[str, int]:
    """The tokens of a message or of a turn."""
    usage = object_of(about.get("usage"))
    return {
        "inputTokens": _count(usage.get("input_tokens")),
        "outputTokens": _count(usage.get("output_tokens")),
        "cachedReadTokens": _count(usage.get("cache_read_input_tokens")),
        "cachedWriteTokens": _count(usage.get("cache_creation_input_tokens")),
    }


def _window(line: Json) -> int:
    """Tokens that the smallest context of the models that answered can hold; 0 when that is not said."""
    sizes = [_count(object_of(model).get("contextWindow")) for model in object_of(line.get("modelUsage")).values()]
    return min((size for size in sizes if size), default=0)


def _command(name: str) -> Json:
    return {"name": name, "description": ""}


def _parent(line: Json) -> str | None:
    return text_of(line.get("parent_tool_use_id"))


def _meta(parent: str | None, **about: str) -> Json | None:
    """What clients know Claude Code's own facts by; a call of a subagent names the call that has begun it."""
    facts = {**about, "parentToolCallId": parent} if parent else about
    return {"claudeCode": facts} if facts else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_LINES: dict[str, Callable[[Json, str], Iterator[Body]]] = {
    "system": _system,
    "assistant": _assistant,
    "user": _user,
    "result": _result,
}
