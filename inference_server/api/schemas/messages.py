"""An assistant's message and its deltas in OpenAI's shape: content, reasoning and tool calls."""

from __future__ import annotations

from typing import Any

from inference_server.api.schemas.tools import new_call_id
from inference_server.generation.parsing.events import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Event,
    Reasoning,
    joined,
)
from inference_server.types import FinishReason


def message_object(text: str, parser: AnswerParser | None) -> dict[str, Any]:
    """The message that a whole answer is. Without a parser all of it is content."""
    if parser is None:
        return {"role": "assistant", "content": text, "refusal": None}
    content, reasoning, calls = "", "", []
    for event in joined([*parser.feed(text), *parser.finish()]):
        match event:
            case Content(piece):
                content += piece
            case Reasoning(piece):
                reasoning += piece
            case CallBegin(_, name):
                calls.append(_call(name, ""))
            case CallArguments(index, piece):
                calls[index]["function"]["arguments"] += piece
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls and not content:
        message["content"] = None
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def delta_object(event: Event) -> dict[str, Any]:
    """A piece of a message in a stream."""
    match event:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallBegin(index, name):
            return {"tool_calls": [{"index": index, **_call(name, "")}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def finish_reason(reason: FinishReason | None, *, has_calls: bool) -> str | None:
    """Why an answer ended; one with calls ends for them."""
    return "tool_calls" if has_calls and reason is FinishReason.STOP else reason


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": new_call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
