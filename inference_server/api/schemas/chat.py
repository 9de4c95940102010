"""`/v1/chat/completions`: OpenAI's request and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.api.schemas.sampling import GenerationFields, Positive, refuse
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import ChatPrompt, SamplingOptions

MAX_MESSAGES = 2048


class ContentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content. Types other than text are refused with a clear message."""

    type: str
    text: str | None = None
    refusal: Any = None
    image_url: Any = None
    input_audio: Any = None
    video_url: Any = None
    file: Any = None


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class ChatRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a chat completion."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Positive | None = None
    add_generation_prompt: bool | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Known and refused when used, until they are built.
    response_format: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    reasoning_effort: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: bool | None = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def sampling_options(self) -> SamplingOptions:
        """`max_completion_tokens` is the newer name of `max_tokens`."""
        options = GenerationFields.sampling_options(self)
        if self.max_completion_tokens is None:
            return options
        return msgspec.structs.replace(options, max_tokens=self.max_completion_tokens)

    def prompt(self) -> ChatPrompt:
        """The conversation for the template.

        Raises:
            UnsupportedParameter: a message has parts that are not text, or tool calls.
        """
        messages = tuple(_plain(message, index) for index, message in enumerate(self.messages))
        return ChatPrompt(messages=messages, add_generation_prompt=self.add_generation_prompt is not False)

    def check(self) -> None:
        """See `GenerationFields.check`."""
        GenerationFields.check(self)
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", param="max_tokens")
        text_only = self.response_format in (None, {"type": "text"})
        refuse(not text_only, "response_format", "a format other than text")
        refuse(self.top_logprobs not in (None, 0), "top_logprobs")
        refuse(bool(self.tools), "tools")
        refuse(self.tool_choice not in (None, "none", "auto"), "tool_choice")
        refuse(bool(self.functions), "functions")
        refuse(bool(self.store), "store", "true")
        refuse(bool(self.continue_final_message), "continue_final_message", "true")
        refuse(self.modalities not in (None, ["text"]), "modalities", "an output other than text")
        for name in (
            "function_call", "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs", "audio",
            "prediction", "verbosity", "web_search_options",
        ):  # fmt: skip
            refuse(getattr(self, name) is not None, name)
        if self.chat_template is not None:
            raise UnsupportedParameter(
                "chat_template: templates come from the model, never from a request", param="chat_template"
            )


def _plain(message: Message, index: int) -> dict[str, str]:
    for name in ("tool_calls", "tool_call_id", "function_call", "audio", "annotations", "refusal"):
        refuse(getattr(message, name) not in (None, []), f"messages[{index}].{name}")
    refuse(message.role in ("tool", "function"), f"messages[{index}].role", f"role {message.role!r}")
    # Templates know "system"; OpenAI calls the same thing "developer" for newer models.
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": _text(message.content, index)}
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _text(content: str | list[ContentPart] | None, index: int) -> str:
    if isinstance(content, str):
        return content
    if not content:
        where = f"messages[{index}].content"
        raise InvalidRequest(f"Missing required parameter: {where}", param=where)
    for number, part in enumerate(content):
        where = f"messages[{index}].content[{number}]"
        if part.type != "text":
            raise UnsupportedParameter(
                f"{where}: content of type {part.type[:40]!r} is not supported; only text is, and nothing is "
                "ever fetched for a client",
                param=where,
            )
        if part.text is None:
            raise InvalidRequest(f"Missing required parameter: {where}.text", param=f"{where}.text")
    return "\n".join(part.text or "" for part in content)
