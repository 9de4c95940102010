"""What chat and completions answer, in OpenAI's shapes, as bytes. Knows no requests and no HTTP.

A chunk of a stream is a constant beginning, the text as a JSON string, and a constant end: only the text is
encoded per chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_server.generation.requests import TextDelta
from inference_server.types import FinishReason, Usage

_MARK = "\x00mark\x00"  # stands for the text while a chunk's constant parts are made
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Frame:
    """What every answer and chunk of one request says about itself. `created` is seconds since the epoch."""

    id: str
    model: str
    created: int
    system_fingerprint: str

    def object(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The JSON object of this kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            **fields,
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


# ---------------------------------------------------------------- chat


def chat_completion(frame: Frame, text: str, finish_reason: FinishReason | None, usage: Usage) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return _encode(frame.object("chat.completion", choices=[choice], usage=usage_object(usage)))


class ChatChunks:
    """The events of one streamed chat completion."""

    def __init__(self, frame: Frame, *, include_usage: bool) -> None:
        self._frame = frame
        self._include_usage = include_usage
        self._before, self._after = self._chunk({"content": _MARK}, None).split(_encode(_MARK))

    def first(self) -> bytes:
        """The role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, delta: TextDelta) -> bytes:
        """A piece of text, if it holds any, and the end of the answer, if it is that."""
        events = self._before + _encode(delta.text) + self._after if delta.text else b""
        return events if delta.finish_reason is None else events + self._chunk({}, delta.finish_reason)

    def usage(self, usage: Usage) -> bytes:
        """The usage chunk; nothing if the client did not ask for it."""
        return _usage_event(self._frame, "chat.completion.chunk", usage) if self._include_usage else b""

    def _chunk(self, delta: dict[str, str], finish_reason: FinishReason | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return event(_encode(self._frame.object("chat.completion.chunk", choices=[choice], **usage)))


# ---------------------------------------------------------------- completions


def text_completion(frame: Frame, answers: Iterable[tuple[str, FinishReason | None]], usage: Usage) -> bytes:
    """A whole completion with a choice per answer."""
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        for index, (text, reason) in enumerate(answers)
    ]
    return _encode(frame.object("text_completion", choices=choices, usage=usage_object(usage)))


class CompletionChunks:
    """The events of one streamed completion."""

    def __init__(self, frame: Frame, *, include_usage: bool) -> None:
        self._frame = frame
        self._include_usage = include_usage

    def delta(self, delta: TextDelta) -> bytes:
        """A piece of one choice's text."""
        choice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        usage = {"usage": None} if self._include_usage else {}
        return event(_encode(self._frame.object("text_completion", choices=[choice], **usage)))

    def usage(self, usage: Usage) -> bytes:
        """The usage chunk; nothing if the client did not ask for it."""
        return _usage_event(self._frame, "text_completion", usage) if self._include_usage else b""


def event(payload: bytes) -> bytes:
    """One `data:` event."""
    return b"data: " + payload + b"\n\n"


def _usage_event(frame: Frame, kind: str, usage: Usage) -> bytes:
    return event(_encode(frame.object(kind, choices=[], usage=usage_object(usage))))
