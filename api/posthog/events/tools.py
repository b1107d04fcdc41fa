"""Tool calls of Claude Code as clients show them: title, kind, places, and what is known of the outcome."""

from __future__ import annotations

from typing import Any

from api.posthog.events.bodies import Json, object_of, objects_of, one_line, text_block, text_of

# What each of Claude Code's own tools does, in the kinds that clients have pictures for.
_KINDS = {
    "Read": "read",
    "NotebookRead": "read",
    "BashOutput": "read",
    "Edit": "edit",
    "MultiEdit": "edit",
    "Write": "edit",
    "NotebookEdit": "edit",
    "Bash": "execute",
    "KillShell": "execute",
    "Glob": "search",
    "Grep": "search",
    "LS": "search",
    "ToolSearch": "search",
    "WebFetch": "fetch",
    "WebSearch": "fetch",
    "Agent": "think",
    "Task": "think",
    "TodoWrite": "think",
    "TaskCreate": "think",
    "TaskUpdate": "think",
    "TaskList": "think",
    "TaskGet": "think",
    "EnterPlanMode": "switch_mode",
    "ExitPlanMode": "switch_mode",
}
# Which argument says most of what a call is about, and what is put before it.
_SUBJECTS = {
    "Read": ("file_path", "Read "),
    "Edit": ("file_path", "Edit "),
    "MultiEdit": ("file_path", "Edit "),
    "Write": ("file_path", "Write "),
    "NotebookEdit": ("notebook_path", "Edit "),
    "Bash": ("command", ""),
    "Glob": ("pattern", "Find "),
    "Grep": ("pattern", "Search "),
    "LS": ("path", "List "),
    "WebFetch": ("url", "Fetch "),
    "WebSearch": ("query", "Search the web: "),
    "Agent": ("description", ""),
    "Task": ("description", ""),
    "TaskCreate": ("subject", "To do: "),
}
_PLAN_STATES = frozenset({"pending", "in_progress", "completed"})


def kind_of(tool: str) -> str:
    """What a tool does; ``other`` for one that is not Claude Code's own."""
    return _KINDS.get(tool, "other")


def described(tool: str, call_id: str, arguments: Json) -> Json:
    """A call as a client shows it before it is carried out."""
    call: Json = {"toolCallId": call_id, "title": _title(tool, arguments), "kind": kind_of(tool)}
    call["rawInput"] = arguments
    if content := _intended(tool, arguments):
        call["content"] = content
    if path := text_of(arguments.get("file_path")) or text_of(arguments.get("notebook_path")):
        line = arguments.get("offset")
        known = isinstance(line, int) and not isinstance(line, bool)
        call["locations"] = [{"path": path, "line": line}] if known else [{"path": path}]
    return call


def outcome(result: Any) -> list[Json]:
    """The content of a tool's result."""
    if isinstance(result, str):
        return [_content(text_block(result))] if result else []
    blocks = []
    for block in objects_of(result):
        source = object_of(block.get("source"))
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            blocks.append(_content(text_block(block["text"])))
        elif block.get("type") == "image" and isinstance(source.get("data"), str):
            image = {"type": "image", "data": source["data"], "mimeType": text_of(source.get("media_type")) or ""}
            blocks.append(_content(image))
    return blocks


def plan(items: Any) -> list[Json] | None:
    """What is to be done, of a list as Claude Code has it; None for what is no list."""
    if not isinstance(items, list):
        return None
    entries = []
    for item in objects_of(items):
        state = text_of(item.get("status"))
        entries.append(
            {
                "content": text_of(item.get("content")) or text_of(item.get("subject")) or "",
                "priority": "medium",
                "status": state if state in _PLAN_STATES else "pending",
            }
        )
    return entries


def _title(tool: str, arguments: Json) -> str:
    subject, before = _SUBJECTS.get(tool, ("", ""))
    about = text_of(arguments.get(subject))
    return one_line(before + about) if about else one_line(tool)


def _intended(tool: str, arguments: Json) -> list[Json]:
    """What a call is about to do, where that can be shown: changes of files, a plan to be approved."""
    path = text_of(arguments.get("file_path"))
    if tool == "Write" and path and isinstance(arguments.get("content"), str):
        return [_diff(path, None, arguments["content"])]
    if tool in {"Edit", "MultiEdit"} and path:
        edits = objects_of(arguments.get("edits")) if tool == "MultiEdit" else [arguments]
        return [
            _diff(path, edit["old_string"], edit["new_string"])
            for edit in edits
            if isinstance(edit.get("old_string"), str) and isinstance(edit.get("new_string"), str)
        ]
    if tool == "ExitPlanMode" and isinstance(arguments.get("plan"), str):
        return [_content(text_block(arguments["plan"]))]
    return []


def _content(block: Json) -> Json:
    return {"type": "content", "content": block}


def _diff(path: str, before: str | None, after: str) -> Json:
    return {"type": "diff", "path": path, "oldText": before, "newText": after}
