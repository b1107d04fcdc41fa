"""The scripted model: a small Anthropic Messages API that plays scenario files instead of thinking.

It stands in for the model provider when no API key is set, and says so: in the header ``x-taskyard-model: scripted``,
in the model name of its answers, and in the answer to ``GET /``. It keeps no state; see
``worker.scripted_model.scenario.next_cue``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from worker.scripted_model.scenario import Cue, Scenario, Turn, choose_scenario, next_cue, read_conversation

MODEL_NAME = "taskyard-scripted-model"
HEADERS = {"x-taskyard-model": "scripted"}
_CHUNK = 24  # characters of text in one delta
# Who has thought something signs it, so that the provider knows it again; here nobody looks.
_SIGNATURE = "c2NyaXB0ZWQ="
# What a block has before its first delta.
_OPENINGS: dict[str, dict[str, Any]] = {
    "thinking": {"thinking": "", "signature": ""},
    "text": {"text": ""},
    "tool_use": {"input": {}},
}
_BEAT = 1.0  # most seconds between two events of a delayed answer


def create_model_app(scenarios: Sequence[Scenario]) -> Starlette:
    """The API as an ASGI application that plays these scenarios."""

    async def about(_: Request) -> Response:
        return JSONResponse(
            {"model": MODEL_NAME, "about": "Scripted model of Taskyard: it plays scenario files."}, headers=HEADERS
        )

    async def count_tokens(request: Request) -> Response:
        body = await _read(request)
        return body if isinstance(body, Response) else JSONResponse({"input_tokens": _tokens(body)}, headers=HEADERS)

    async def messages(request: Request) -> Response:
        body = await _read(request)
        if isinstance(body, Response):
            return body
        cue = _cue(body, scenarios)
        error = cue.turn.error
        if error:
            return _error(error.status, error.type, error.message)
        if body.get("stream"):
            return StreamingResponse(
                _stream(cue, body), media_type="text/event-stream", headers={**HEADERS, "cache-control": "no-cache"}
            )
        await asyncio.sleep(cue.turn.delay)
        return JSONResponse(_whole(cue, body), headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", about, methods=["GET", "HEAD"]),
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        ]
    )


async def _read(request: Request) -> dict[str, Any] | Response:
    try:
        body = json.loads(await request.body())
    except ValueError:
        return _error(400, "invalid_request_error", "The body is not JSON.")
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return _error(400, "invalid_request_error", "messages: a list with at least one message is required.")
    return dict(body)


def _cue(body: dict[str, Any], scenarios: Sequence[Scenario]) -> Cue:
    conversation = read_conversation(body["messages"])
    if not body.get("tools"):
        # Claude Code asks for titles and the like beside the conversation; such a request offers no tools.
        return Cue("side", conversation.turns, Turn(text=_side_answer(body)))
    return next_cue(choose_scenario(scenarios, conversation.first_message), conversation)


def _side_answer(body: dict[str, Any]) -> str:
    schema = body.get("output_config", {}).get("format", {}).get("schema", {})
    if schema:
        return json.dumps(dict.fromkeys(schema.get("properties", {}), "Scripted"))
    return "Scripted"


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status, headers=HEADERS)


def _whole(cue: Cue, body: dict[str, Any]) -> dict[str, Any]:
    """The complete message of a cue, as the API gives it when it does not stream."""
    content = list(_blocks(cue, body))
    return {
        **_head(cue, body),
        "content": content,
        "stop_reason": "tool_use" if cue.turn.tools else "end_turn",
        "usage": {**_usage(body), "output_tokens": _tokens(content)},
    }


def _head(cue: Cue, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{_digest(cue, body)}",
        "type": "message",
        "role": "assistant",
        "model": MODEL_NAME,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**_usage(body), "output_tokens": 1},
    }


def _blocks(cue: Cue, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if cue.turn.thinking:
        yield {"type": "thinking", "thinking": cue.turn.thinking, "signature": _SIGNATURE}
    if cue.turn.text:
        yield {"type": "text", "text": cue.turn.text.replace("{{n}}", str(cue.repetition))}
    for index, tool in enumerate(cue.turn.tools):
        yield {
            "type": "tool_use",
            "id": f"toolu_{_digest(cue, body, index)}",
            "name": tool.name,
            "input": _numbered(tool.input, cue.repetition),
        }


def _numbered(value: Any, repetition: int) -> Any:
    if isinstance(value, str):
        return value.replace("{{n}}", str(repetition))
    if isinstance(value, dict):
        return {key: _numbered(item, repetition) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbered(item, repetition) for item in value]
    return value


async def _stream(cue: Cue, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The events of a cue, in the order of the real API, spread over the turn's delay."""
    content = list(_blocks(cue, body))
    deltas = [delta for block in content for delta in _deltas(block)]
    pause = cue.turn.delay / max(len(deltas), 1)
    yield _event("message_start", message=_head(cue, body))
    for index, block in enumerate(content):
        opening = {**block, **_OPENINGS[block["type"]]}
        yield _event("content_block_start", index=index, content_block=opening)
        if index == 0:
            yield _event("ping")
        for delta in _deltas(block):
            async for beat in _wait(pause):
                yield beat
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    stop = {"stop_reason": "tool_use" if cue.turn.tools else "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=stop, usage={**_usage(body), "output_tokens": _tokens(content)})
    yield _event("message_stop")


async def _wait(seconds: float) -> AsyncIterator[bytes]:
    while seconds > 0:
        await asyncio.sleep(min(seconds, _BEAT))
        seconds -= _BEAT
        if seconds > 0:
            yield _event("ping")


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    if block["type"] == "text":
        text = block["text"]
        return [{"type": "text_delta", "text": text[at : at + _CHUNK]} for at in range(0, len(text), _CHUNK)]
    if block["type"] == "thinking":
        text = block["thinking"]
        thoughts = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return [*({"type": "thinking_delta", "thinking": thought} for thought in thoughts), signed]
    text = json.dumps(block["input"])
    parts = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    return [{"type": "input_json_delta", "partial_json": part} for part in ["", *parts]]


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _usage(body: dict[str, Any]) -> dict[str, int]:
    return {"input_tokens": _tokens(body), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _tokens(value: Any) -> int:
    """A plausible count: four characters of JSON are one token."""
    return max(1, len(json.dumps(value)) // 4)


def _digest(cue: Cue, body: dict[str, Any], index: int = 0) -> str:
    """Ids that are the same for the same request, and different for each turn and tool of a conversation."""
    seed = json.dumps([cue.scenario, cue.number, index, read_conversation(body["messages"]).first_message])
    return hashlib.sha256(seed.encode()).hexdigest()[:24]
