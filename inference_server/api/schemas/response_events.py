"""What `/v1/responses` answers: a response object, and the events that build it up in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inference_server.api.errors import STATUS
from inference_server.api.schemas.answers import Frame
from inference_server.api.schemas.responses import ResponsesRequest
from inference_server.api.schemas.tools import new_call_id
from inference_server.errors import HelixFlowError
from inference_server.generation.parsing.events import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Event,
    Reasoning,
)
from inference_server.generation.requests import TextDelta
from inference_server.types import FinishReason, Usage

_PART = {"type": "output_text", "annotations": [], "logprobs": []}
_KINDS = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


@dataclass(slots=True)
class _Item:
    """One item of the output while it grows."""

    kind: str  # message, reasoning or function_call
    id: str
    name: str = ""
    call_id: str = field(default_factory=new_call_id)
    text: str = ""

    def object(self, status: str) -> dict[str, Any]:
        """As JSON."""
        item: dict[str, Any] = {"type": self.kind, "id": self.id, "status": status}
        if self.kind == "function_call":
            return item | {"call_id": self.call_id, "name": self.name, "arguments": self.text}
        if self.kind == "reasoning":
            parts = [{"type": "reasoning_text", "text": self.text}] if self.text else []
            return item | {"summary": [], "content": parts}
        content = [_PART | {"text": self.text}] if self.text or status != "in_progress" else []
        return item | {"role": "assistant", "content": content}


class ResponseBuilder:
    """One response: takes an answer's pieces and gives the events that tell of them, or in the end the whole.

    Owner: the request.
    """

    def __init__(self, frame: Frame, wanted: ResponsesRequest, parser: AnswerParser) -> None:
        self._frame = frame
        self._wanted = wanted
        self._parser = parser
        self._items: list[_Item] = []
        self._is_open = False
        self._number = -1
        self._num_reasoning_tokens = 0  # up to the piece that held the last of the reasoning

    def first(self) -> bytes:
        """The response has begun."""
        begun = self._object("in_progress")
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def delta(self, delta: TextDelta, usage: Usage) -> bytes:
        """A piece of the answer, and the end, if it is that."""
        found = list(self._parser.feed(delta.text))
        if delta.finish_reason is not None:
            found += self._parser.finish()
        if any(isinstance(event, Reasoning) for event in found):
            self._num_reasoning_tokens = usage.completion_tokens
        events = [piece for event in found for piece in self._told(event)]
        if delta.finish_reason is not None:
            if not self._items:
                events += self._begin("message")
            events += self._end()
            whole = self.whole(delta.finish_reason, usage)
            events.append(self._event(f"response.{whole['status']}", response=whole))
        return b"".join(events)

    def whole(self, reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
        """The response object at its end."""
        is_cut = reason is FinishReason.LENGTH
        whole = self._object("incomplete" if is_cut else "completed")
        if is_cut:
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        whole["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return whole

    def error(self, error: HelixFlowError) -> bytes:
        """The event that ends a stream that failed."""
        return self._event(
            "error", code=error.code or STATUS[type(error)][1], message=error.message, param=error.param
        )

    # ------------------------------------------------------------ events

    def _told(self, event: Event) -> Iterator[bytes]:
        match event:
            case Content(text):
                yield from self._begin("message")
                yield self._grown("response.output_text.delta", text, content_index=0, logprobs=[])
            case Reasoning(text):
                yield from self._begin("reasoning")
                yield self._grown("response.reasoning_text.delta", text, content_index=0)
            case CallBegin(_, name):
                yield from self._begin("function_call", name)
            case CallArguments(_, text):
                yield self._grown("response.function_call_arguments.delta", text)

    def _begin(self, kind: str, name: str = "") -> Iterator[bytes]:
        """A new item, unless the open one goes on."""
        if self._is_open and kind != "function_call" and self._items[-1].kind == kind:
            return
        yield from self._end()
        suffix = self._frame.id.partition("_")[2]
        item = _Item(kind, f"{_KINDS[kind]}_{suffix}{len(self._items):02d}", name)
        self._items.append(item)
        self._is_open = True
        yield self._of_item("response.output_item.added", item=item.object("in_progress"))
        if kind == "message":
            part = _PART | {"text": ""}
            yield self._of_part("response.content_part.added", part=part)

    def _grown(self, kind: str, text: str, **fields: Any) -> bytes:
        item = self._items[-1]
        item.text += text
        return self._event(kind, item_id=item.id, output_index=len(self._items) - 1, delta=text, **fields)

    def _end(self) -> Iterator[bytes]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        if item.kind == "message":
            yield self._of_part("response.output_text.done", text=item.text, logprobs=[])
            yield self._of_part("response.content_part.done", part=_PART | {"text": item.text})
        elif item.kind == "reasoning":
            yield self._of_part("response.reasoning_text.done", text=item.text)
        else:
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=len(self._items) - 1,
                name=item.name,
                arguments=item.text,
            )
        yield self._of_item("response.output_item.done", item=item.object("completed"))

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, output_index=len(self._items) - 1, **fields)

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        item = self._items[-1]
        return self._event(
            kind, item_id=item.id, output_index=len(self._items) - 1, content_index=0, **fields
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        payload = {"type": kind, "sequence_number": self._number, **fields}
        return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(payload) + b"\n\n"

    # ------------------------------------------------------------ the response

    def _object(self, status: str) -> dict[str, Any]:
        wanted = self._wanted
        wanted_format = None if wanted.text is None else wanted.text.format
        effort = None if wanted.reasoning is None else wanted.reasoning.effort
        item_status = "completed" if status == "completed" else "incomplete"
        return {
            "id": self._frame.id,
            "object": "response",
            "created_at": self._frame.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "model": self._frame.model,
            "output": [item.object(item_status) for item in self._items],
            "parallel_tool_calls": wanted.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": effort, "summary": None},
            "store": False,
            "temperature": wanted.temperature,
            "text": {"format": {"type": "text"} if wanted_format is None else _set(wanted_format)},
            "tool_choice": "auto" if wanted.tool_choice is None else wanted.tool_choice,
            "tools": [_set(tool) for tool in wanted.tools or ()],
            "top_p": wanted.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": wanted.user,
            "metadata": wanted.metadata or {},
        }


def _set(value: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct that the client set."""
    return {name: found for name, found in msgspec.structs.asdict(value).items() if found is not None}
