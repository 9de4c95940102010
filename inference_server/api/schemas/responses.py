"""`/v1/responses`: OpenAI's newer request, as far as a server without a memory of conversations can serve it.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.api.schemas.chat import MAX_MESSAGES
from inference_server.api.schemas.formats import JsonSchemaFormat, ResponseFormat, grammar_of_format
from inference_server.api.schemas.sampling import (
    Positive,
    Seconds,
    StreamOptions,
    Temperature,
    TopP,
    refuse,
    refuse_fields,
)
from inference_server.api.schemas.tools import (
    MAX_TOOLS,
    CalledFunction,
    Function,
    FunctionName,
    FunctionTool,
    NamedChoice,
    NamedFunction,
    ToolCall,
    ToolChoice,
    tool_use,
)
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import ChatPrompt, SamplingOptions, TextRequest
from inference_server.generation.tools import ToolUse
from inference_server.types import GrammarSpec

_NO_MEMORY = "nothing is kept between requests; send the whole conversation as input"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; types other than text are refused."""

    type: str
    text: str | None = None
    annotations: Any = None
    logprobs: Any = None
    image_url: Any = None
    file_id: Any = None
    detail: Any = None


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message, a call, a call's result or reasoning, by its type; a message may leave that out.

    A reference to an earlier item is refused. `phase`, of an answer's messages, changes nothing.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = (
        "message"
    )
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: Any = None
    encrypted_content: Any = None
    phase: Any = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Any = None


class FlatTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function, as this interface spells it."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Demands one function."""

    type: Literal["function"]
    name: FunctionName


class ReasoningOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reasoning`; a summary is never made."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. What needs a memory of earlier responses is refused."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    timeout: Seconds | None = None
    keep_alive: float | str | None = None

    # Accepted without effect (docs/openai-compatibility.md).
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = None
    include: list[str] | None = None

    # Known and refused when used.
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    top_logprobs: Any = None

    def check(self) -> None:
        """What a schema cannot say.

        Raises:
            UnsupportedParameter: a known field is used that is not supported.
        """
        for name, why in {
            "previous_response_id": _NO_MEMORY,
            "conversation": _NO_MEMORY,
            "background": "a response is made while its client waits",
            "prompt": "no prompts are stored here",
            "max_tool_calls": "no tool is run here",
            "top_logprobs": "this interface gives none; /v1/chat/completions does",
        }.items():
            if getattr(self, name):
                raise UnsupportedParameter(f"{name}: {why}", param=name)
        refuse(self.text is not None and self.text.verbosity is not None, "text.verbosity")

    def text_request(self, request_id: str) -> TextRequest:
        """What the generation service is asked for.

        Raises:
            InvalidRequest, UnsupportedParameter: items, tools or format are none that can be served.
        """
        use = self.tool_use()
        return TextRequest(
            request_id=request_id,
            model=self.model,
            prompts=(self.chat(use),),
            sampling=SamplingOptions(
                max_tokens=self.max_output_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                grammar=self._grammar(use),
            ),
            tool_use=use,
        )

    def tool_use(self) -> ToolUse | None:
        """What the model is to do with the tools. Raises: as `tools.tool_use`."""
        tools = [_nested(tool, number) for number, tool in enumerate(self.tools or ())]
        choice: ToolChoice | FlatChoice | None = self.tool_choice
        if isinstance(choice, FlatChoice):
            choice = NamedChoice("function", NamedFunction(choice.name))
        return tool_use(tools, choice, self.parallel_tool_calls)

    def chat(self, use: ToolUse | None) -> ChatPrompt:
        """The conversation for the template."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for number, item in enumerate(self.input):
                _take(messages, item, f"input[{number}]")
        effort = None if self.reasoning is None else self.reasoning.effort
        variables: dict[str, Any] = {}
        if effort is not None:
            variables = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        return ChatPrompt(
            messages=tuple(messages), variables=variables, tools=() if use is None else use.tools
        )

    def _grammar(self, use: ToolUse | None) -> GrammarSpec | None:
        wanted = None if self.text is None else self.text.format
        form = None if wanted is None else grammar_of_format(_chat_format(wanted), "text.format")
        calls = None if use is None else use.grammar()
        return calls or form  # a demanded call goes before a form, as in chat


def _chat_format(wanted: TextFormat) -> ResponseFormat:
    schema = None if wanted.schema is None else JsonSchemaFormat(schema=wanted.schema)
    return ResponseFormat(type=wanted.type, json_schema=schema)


def _nested(tool: FlatTool, number: int) -> FunctionTool:
    where = f"tools[{number}]"
    if tool.type != "function":
        raise UnsupportedParameter(f"{where}: tools of type {tool.type[:40]!r} do not run here", param=where)
    if tool.name is None:
        raise InvalidRequest(f"Missing required parameter: {where}.name", param=f"{where}.name")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return FunctionTool(type="function", function=function)


def _take(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    """Add an item to the conversation; a call goes to the assistant's message before it, if there is one."""
    match item.type:
        case "message":
            if item.role is None or item.content is None:
                missing = f"{where}.{'role' if item.role is None else 'content'}"
                raise InvalidRequest(f"Missing required parameter: {missing}", param=missing)
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content, f"{where}.content")})
        case "function_call":
            if item.call_id is None or item.name is None or item.arguments is None:
                raise InvalidRequest(f"{where}: a call has call_id, name and arguments", param=where)
            call = ToolCall(item.call_id, "function", CalledFunction(item.name, item.arguments))
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call.for_template())
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise InvalidRequest(f"{where}: a result has call_id and output", param=where)
            output = _text(item.output, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        case "item_reference":
            raise UnsupportedParameter(f"{where}: {_NO_MEMORY}", param=where)
        case "reasoning":
            pass  # templates leave out what was thought in earlier turns


def _text(content: str | Sequence[Part], where: str) -> str:
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text") or part.text is None:
            place = f"{where}[{number}]"
            raise UnsupportedParameter(
                f"{place}: only text is supported, not {part.type[:40]!r}", param=place
            )
        refuse_fields(part, ("image_url", "file_id", "detail"), f"{where}[{number}]")
    return "\n".join(part.text or "" for part in content)
