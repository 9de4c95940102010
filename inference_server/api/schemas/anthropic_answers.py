"""Anthropic's answers: a message in one piece, the events of a stream, and the one that tells of an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from inference_server.api.errors import anthropic_error_body
from inference_server.api.schemas.answers import Frame
from inference_server.errors import HelixFlowError
from inference_server.generation.choices import Choice
from inference_server.generation.json_text import parse_json
from inference_server.generation.parsing.events import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Event,
    Reasoning,
    joined,
)
from inference_server.generation.requests import TextDelta
from inference_server.types import FinishReason, Usage


def message_answer(frame: Frame, choice: Choice, usage: Usage, parser: AnswerParser) -> bytes:
    """A whole message."""
    content: list[dict[str, Any]] = []
    for event in joined([*parser.feed(choice.text), *parser.finish()]):
        match event:
            case Content(text):
                content.append({"type": "text", "text": text})
            case Reasoning(text):
                content.append({"type": "thinking", "thinking": text, "signature": ""})
            case CallBegin(_, name):
                content.append({"type": "tool_use", "id": _tool_use_id(frame, len(content)), "name": name})
            case CallArguments(_, text):
                content[-1]["input"] = _input(text)
    for block in content:
        if block["type"] == "tool_use":
            block.setdefault("input", {})
    calls = any(block["type"] == "tool_use" for block in content)
    reason, sequence = _stop(choice.finish_reason, choice.stop_reason, has_calls=calls)
    message = _message(frame, content, reason, sequence) | {"usage": _usage(usage)}
    return msgspec.json.encode(message)


class MessageEvents:
    """The events of one streamed message. Blocks begin with their first piece and end with the next one's."""

    def __init__(self, frame: Frame, parser: AnswerParser) -> None:
        self._frame = frame
        self._parser = parser
        self._index = -1
        self._open: str | None = None
        self._has_calls = False

    def first(self, usage: Usage) -> bytes:
        """The message without content."""
        message = _message(self._frame, [], None, None) | {"usage": _usage(usage)}
        return _event("message_start", message=message)

    def delta(self, delta: TextDelta, usage: Usage) -> bytes:
        """A piece of text, and the end of the message, if it is that."""
        found = list(self._parser.feed(delta.text))
        if delta.finish_reason is not None:
            found += self._parser.finish()
        events = b"".join([piece for event in found for piece in self._told(event)])
        return events if delta.finish_reason is None else events + self._last(delta, usage)

    def _told(self, event: Event) -> Iterator[bytes]:
        match event:
            case Content(text):
                yield from self._begin("text", {"type": "text", "text": ""})
                yield self._piece({"type": "text_delta", "text": text})
            case Reasoning(text):
                yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._piece({"type": "thinking_delta", "thinking": text})
            case CallBegin(index, name):
                self._has_calls = True
                block = {
                    "type": "tool_use",
                    "id": _tool_use_id(self._frame, index),
                    "name": name,
                    "input": {},
                }
                yield from self._begin(f"call {index}", block)
            case CallArguments(_, text):
                yield self._piece({"type": "input_json_delta", "partial_json": text})

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._end()
        self._open = kind
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=block)

    def _piece(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _end(self) -> Iterator[bytes]:
        if self._open is not None:
            yield _event("content_block_stop", index=self._index)
            self._open = None

    def _last(self, delta: TextDelta, usage: Usage) -> bytes:
        reason, sequence = _stop(delta.finish_reason, delta.stop_reason, has_calls=self._has_calls)
        end = {"stop_reason": reason, "stop_sequence": sequence}
        events = [
            *self._end(),
            _event("message_delta", delta=end, usage=_usage(usage)),
            _event("message_stop"),
        ]
        return b"".join(events)


def error_event(error: HelixFlowError) -> bytes:
    """What ends a stream."""
    return b"event: error\ndata: " + anthropic_error_body(error) + b"\n\n"


def _message(
    frame: Frame, content: list[dict[str, Any]], reason: str | None, sequence: str | None
) -> dict[str, Any]:
    return {
        "id": frame.id,
        "type": "message",
        "role": "assistant",
        "model": frame.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
    }


def _usage(usage: Usage) -> dict[str, int]:
    """Cached tokens are counted apart from the other input, as Anthropic does."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _stop(
    reason: FinishReason | None, stop: str | int | None, *, has_calls: bool
) -> tuple[str | None, str | None]:
    if isinstance(stop, str):
        return "stop_sequence", stop
    if reason is FinishReason.LENGTH:
        return "max_tokens", None
    return ("tool_use" if has_calls else "end_turn"), None


def _tool_use_id(frame: Frame, number: int) -> str:
    return f"toolu_{frame.id.partition('_')[2]}{number:02d}"


def _input(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:  # the answer was cut short
        return {}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"
