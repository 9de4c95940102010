"""What chat and completions answer, in OpenAI's shapes, as bytes. Knows no requests and no HTTP.

A chunk of a stream is a constant beginning, the text as a JSON string, and a constant end: only the text is
encoded per chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_server.api.schemas.logprobs import (
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
    whole_chat_logprobs,
    whole_completion_logprobs,
)
from inference_server.api.schemas.messages import delta_object, finish_reason, message_object
from inference_server.generation.choices import Choice
from inference_server.generation.parsing.events import AnswerParser, CallBegin
from inference_server.generation.requests import TextDelta, TextRequest
from inference_server.types import Usage

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


async def chat_completion(
    frame: Frame,
    wanted: TextRequest,
    choices: Seq[Choice],
    usage: Usage,
    new_parser: Callable[[], AnswerParser | None],
) -> bytes:
    """A whole chat completion."""
    scores = wanted.sampling.logprobs is not None
    data = []
    for choice in choices:
        message = message_object(choice.text, new_parser())
        data.append(
            {
                "index": choice.index,
                "message": message,
                "logprobs": await whole_chat_logprobs(choice.scored) if scores else None,
                "finish_reason": finish_reason(choice.finish_reason, has_calls="tool_calls" in message),
                "stop_reason": choice.stop_reason,
            }
        )
    answer = frame.object("chat.completion", choices=data, usage=usage_object(usage))
    if wanted.sampling.prompt_logprobs is not None:
        answer["prompt_logprobs"] = await prompt_logprobs(choices[0].prompt)
    return _encode(answer)


class ChatChunks:
    """The events of one streamed chat completion."""

    def __init__(
        self,
        frame: Frame,
        wanted: TextRequest,
        *,
        include_usage: bool,
        parsers: Seq[AnswerParser | None],
    ) -> None:
        """`parsers`: one for each answer."""
        self._frame = frame
        self._include_usage = include_usage
        self._parsers = parsers
        self._calling: set[int] = set()  # answers with calls
        self._num_answers = wanted.num_answers
        self._with_scores = wanted.sampling.logprobs is not None
        marked = [self._chunk(index, {"content": _MARK}) for index in range(wanted.num_answers)]
        self._parts = [chunk.split(_encode(_MARK)) for chunk in marked]

    def first(self) -> bytes:
        """The role of each answer."""
        role = {"role": "assistant", "content": ""}
        return b"".join([self._chunk(index, role) for index in range(self._num_answers)])

    def delta(self, delta: TextDelta) -> bytes:
        """A piece of text, if it holds any, and the end of the answer, if it is that."""
        parser = self._parsers[delta.index]
        if parser is not None:
            return self._parsed(delta, parser)
        events = b""
        if self._with_scores and delta.scored:
            events = self._chunk(delta.index, {"content": delta.text}, logprobs=chat_logprobs(delta.scored))
        elif delta.text:
            before, after = self._parts[delta.index]
            events = before + _encode(delta.text) + after
        if delta.finish_reason is None:
            return events
        return events + self._chunk(
            delta.index, {}, finish_reason=delta.finish_reason, stop_reason=delta.stop_reason
        )

    def _parsed(self, delta: TextDelta, parser: AnswerParser) -> bytes:
        """As `delta`, of an answer that may hold reasoning and calls."""
        found = list(parser.feed(delta.text))
        if delta.finish_reason is not None:
            found += parser.finish()
        parts = [delta_object(event) for event in found]
        if any(isinstance(event, CallBegin) for event in found):
            self._calling.add(delta.index)
        more: dict[str, Any] = {}
        if self._with_scores and delta.scored:
            more["logprobs"] = chat_logprobs(delta.scored)
            parts = parts or [{"content": ""}]
        chunks = []
        for part in parts:
            chunks.append(self._chunk(delta.index, part, **more))
            more = {}
        if delta.finish_reason is not None:
            reason = finish_reason(delta.finish_reason, has_calls=delta.index in self._calling)
            chunks.append(self._chunk(delta.index, {}, finish_reason=reason, stop_reason=delta.stop_reason))
        return b"".join(chunks)

    def usage(self, usage: Usage) -> bytes:
        """The usage chunk; nothing if the client did not ask for it."""
        return _usage_event(self._frame, "chat.completion.chunk", usage) if self._include_usage else b""

    def _chunk(self, index: int, delta: Mapping[str, Any], **fields: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
        usage = {"usage": None} if self._include_usage else {}
        return event(_encode(self._frame.object("chat.completion.chunk", choices=[choice], **usage)))


# ---------------------------------------------------------------- completions


async def text_completion(frame: Frame, wanted: TextRequest, choices: Seq[Choice], usage: Usage) -> bytes:
    """A whole completion."""
    scores = wanted.sampling.logprobs is not None
    data = []
    for choice in choices:
        entry = {
            "index": choice.index,
            "text": choice.text,
            "logprobs": await whole_completion_logprobs(choice.scored) if scores else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if wanted.sampling.prompt_logprobs is not None:
            entry["prompt_logprobs"] = await prompt_logprobs(choice.prompt)
        data.append(entry)
    return _encode(frame.object("text_completion", choices=data, usage=usage_object(usage)))


class CompletionChunks:
    """The events of one streamed completion."""

    def __init__(self, frame: Frame, wanted: TextRequest, *, include_usage: bool) -> None:
        self._frame = frame
        self._include_usage = include_usage
        self._with_scores = wanted.sampling.logprobs is not None

    def delta(self, delta: TextDelta) -> bytes:
        """A piece of one choice's text."""
        choice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": completion_logprobs(delta.scored) if self._with_scores else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
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
