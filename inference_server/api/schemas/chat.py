"""`/v1/chat/completions`: OpenAI's request and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.api.schemas.sampling import (
    GenerationFields,
    NotNegative,
    NumLogprobs,
    Positive,
    refuse,
    refuse_fields,
)
from inference_server.api.schemas.tools import MAX_TOOLS, ToolCall, ToolChoice, Tools, tool_use
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import ChatPrompt, SamplingOptions
from inference_server.generation.tools import ToolUse
from inference_server.types import GrammarSpec

MAX_MESSAGES = 2048


class ContentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content. Types other than text are refused with a clear message.

    `cache_control` changes nothing: prefixes are always cached.
    """

    type: str
    text: str | None = None
    refusal: Any = None
    image_url: Any = None
    input_audio: Any = None
    video_url: Any = None
    file: Any = None
    cache_control: Any = None


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation. `parsed`: what OpenAI's client has made of a past answer."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    reasoning_content: str | None = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None
    parsed: Any = None


class ChatTemplateKwargs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Variables that a request may set for the model's chat template; the template may ignore them.

    Only these names, which templates in use look at, and only plain values: a template is a program.
    """

    enable_thinking: bool | None = None
    thinking: bool | None = None
    clear_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: NotNegative | None = None
    date_string: Annotated[str, Meta(max_length=64)] | None = None

    def variables(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class ChatRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a chat completion."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Positive | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # Known and refused when used, until they are built.
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def sampling_options(self) -> SamplingOptions:
        """`max_completion_tokens` is the newer name of `max_tokens`."""
        options = GenerationFields.sampling_options(self)
        changes: dict[str, Any] = {}
        if self.max_completion_tokens is not None:
            changes["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            changes["logprobs"] = self.top_logprobs or 0
        return msgspec.structs.replace(options, **changes) if changes else options

    def prompt(self) -> ChatPrompt:
        """The conversation for the template.

        Raises: as `chat_prompt`.
        """
        prompt = chat_prompt(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs,
        )
        use, effort = self.tool_use(), self.reasoning_effort
        variables = dict(prompt.variables)
        if effort is not None:
            variables |= {"reasoning_effort": effort, "enable_thinking": effort != "none"} | variables
        tools = () if use is None else use.tools
        return msgspec.structs.replace(prompt, tools=tools, variables=variables)

    def tool_use(self) -> ToolUse | None:
        """What the model is to do with the tools.

        Raises: as `tools.tool_use`.
        """
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    def grammar(self) -> GrammarSpec | None:
        """The form that is asked for. Where a call is demanded it is the call's, as it is with vLLM.

        Raises:
            InvalidRequest: there are several others.
        """
        form, use = GenerationFields.grammar(self), self.tool_use()
        calls = None if use is None else use.grammar()
        return calls or form

    def check(self) -> None:
        """See `GenerationFields.check`."""
        GenerationFields.check(self)
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        refuse(bool(self.functions), "functions", "this older name of tools")
        refuse(bool(self.store), "store", "true")
        refuse(self.modalities not in (None, ["text"]), "modalities", "an output other than text")
        for name in (
            "function_call", "audio", "prediction", "verbosity", "web_search_options",
        ):  # fmt: skip
            refuse(getattr(self, name) is not None, name)
        if self.chat_template is not None:
            raise UnsupportedParameter(
                "chat_template: templates come from the model, never from a request", param="chat_template"
            )


def chat_prompt(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    template_kwargs: ChatTemplateKwargs | None,
) -> ChatPrompt:
    """A conversation for the template.

    Raises:
        UnsupportedParameter: a message has parts that are not text, or tool calls.
        InvalidRequest: the last message is to be continued and a new one begun.
    """
    if continue_final_message and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message goes on with the last message and add_generation_prompt begins a new "
            "one; send one of them",
            param="continue_final_message",
        )
    return ChatPrompt(
        messages=tuple(_plain(message, index) for index, message in enumerate(messages)),
        add_generation_prompt=add_generation_prompt is not False,
        continue_final_message=bool(continue_final_message),
        variables={} if template_kwargs is None else template_kwargs.variables(),
    )


def _plain(message: Message, index: int) -> dict[str, Any]:
    for name in ("function_call", "audio", "annotations", "refusal"):
        refuse(getattr(message, name) not in (None, []), f"messages[{index}].{name}")
    refuse(message.role == "function", f"messages[{index}].role", "role 'function'")
    _check_calls(message, index)
    # Templates know "system"; OpenAI calls the same thing "developer" for newer models.
    role = "system" if message.role == "developer" else message.role
    calls = message.tool_calls or []
    plain: dict[str, Any] = {"role": role, "content": _text(message.content, index, may_lack=bool(calls))}
    if calls:
        plain["tool_calls"] = [call.for_template() for call in calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _check_calls(message: Message, index: int) -> None:
    """Calls are the assistant's, and a result says which call it answers."""
    if message.tool_calls and message.role != "assistant":
        where = f"messages[{index}].tool_calls"
        raise InvalidRequest(f"{where}: only an assistant's message has calls", param=where)
    if (message.tool_call_id is not None) != (message.role == "tool"):
        where = f"messages[{index}].tool_call_id"
        raise InvalidRequest(f"{where}: a message of role tool has it, and no other", param=where)


def _text(content: str | list[ContentPart] | None, index: int, *, may_lack: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_lack:
        return ""
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
        refuse_fields(part, ("refusal", "image_url", "input_audio", "video_url", "file"), where)
    return "\n".join(part.text or "" for part in content)
