"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's requests, as far as text and tools go.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.api.schemas.chat import MAX_MESSAGES
from inference_server.api.schemas.formats import JsonSchemaFormat, ResponseFormat, grammar_of_format
from inference_server.api.schemas.sampling import NotNegative, Positive, Seconds, Share, StopStringList
from inference_server.api.schemas.tools import MAX_TOOLS
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import ChatPrompt, SamplingOptions, TextRequest
from inference_server.generation.tools import ToolUse
from inference_server.types import GrammarSpec

ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # twice as long as OpenAI's


class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Text. `cache_control` changes nothing: prefixes are always cached."""

    text: str
    cache_control: Any = None
    citations: Any = None


class ToolUseBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use", forbid_unknown_fields=True):
    """A call that the assistant made."""

    id: str
    name: ToolName
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResultBlock(
    msgspec.Struct, frozen=True, tag_field="type", tag="tool_result", forbid_unknown_fields=True
):
    """What a call gave. Templates know no failures: of one the model is told in words."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool = False
    cache_control: Any = None


class ThinkingBlock(
    msgspec.Struct, frozen=True, tag_field="type", tag="thinking", forbid_unknown_fields=True
):
    """What the assistant thought; the signature, which nobody here has given, is not looked at."""

    thinking: str
    signature: str = ""


class ImageBlock(msgspec.Struct, frozen=True, tag_field="type", tag="image"):
    """Refused."""


class DocumentBlock(msgspec.Struct, frozen=True, tag_field="type", tag="document"):
    """Refused."""


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | ImageBlock | DocumentBlock


class AnthropicMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool of the client's own. `strict` changes nothing, as in `tools.Function`; all input streams."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Any = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None

    def as_function(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class AnthropicChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model must do with the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to think first; given to the template."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`output_config`; its `effort` changes nothing."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both routes take."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    # Accepted without effect: prefixes are always cached.
    cache_control: Any = None

    def prompt(self) -> ChatPrompt:
        """The conversation for the template. A last message of the assistant's is gone on with.

        Raises:
            UnsupportedParameter: a block is no text and no tool's.
            InvalidRequest: as `tool_use`.
        """
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system)})
        for number, message in enumerate(self.messages):
            messages += _told(message, f"messages.{number}")
        use = self.tool_use()
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking.type != "disabled"
        continues = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
        return ChatPrompt(
            messages=tuple(messages),
            add_generation_prompt=not continues,
            continue_final_message=continues,
            variables=variables,
            tools=() if use is None else use.tools,
        )

    def tool_use(self) -> ToolUse | None:
        """What the model is to do with the tools.

        Raises:
            InvalidRequest: one is demanded that is not there, two have one name, or one takes no object.
        """
        choice = self.tool_choice or AnthropicChoice("auto")
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise InvalidRequest("tools: two have the same name", param="tools")
        for number, tool in enumerate(self.tools or ()):
            if tool.input_schema.get("type", "object") != "object":
                where = f"tools.{number}.input_schema"
                raise InvalidRequest(f"{where}: its type must be object", param=where)
        if choice.type == "any" and not names:
            raise InvalidRequest("tool_choice demands a call, and there are no tools", param="tool_choice")
        if choice.type == "tool" and choice.name not in names:
            raise InvalidRequest(f"tool_choice: there is no tool {choice.name!r}", param="tool_choice")
        if not self.tools or choice.type == "none":
            return None
        return ToolUse(
            tools=tuple(tool.as_function() for tool in self.tools),
            must_call=choice.type == "any",
            name=choice.name if choice.type == "tool" else None,
            allows_several=not choice.disable_parallel_tool_use,
        )


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `/v1/messages`."""

    max_tokens: Positive
    stop_sequences: StopStringList | None = None
    stream: bool | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: NotNegative | None = None
    timeout: Seconds | None = None
    keep_alive: float | str | None = None

    # Accepted without effect (docs/openai-compatibility.md).
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    def text_request(self, request_id: str) -> TextRequest:
        """What the generation service is asked for.

        Raises: as `prompt`.
        """
        use = self.tool_use()
        return TextRequest(
            request_id=request_id,
            model=self.model,
            prompts=(self.prompt(),),
            sampling=SamplingOptions(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                grammar=self._grammar(use),
            ),
            stop=tuple(self.stop_sequences or ()),
            tool_use=use,
        )

    def _grammar(self, use: ToolUse | None) -> GrammarSpec | None:
        """The form that is asked for; a demanded call goes before it."""
        calls = None if use is None else use.grammar()
        param, wanted = "output_format", self.output_format
        if wanted is None and self.output_config is not None:
            param, wanted = "output_config.format", self.output_config.format
        if calls is not None or wanted is None:
            return calls
        schema = JsonSchemaFormat(schema=wanted.schema)
        return grammar_of_format(ResponseFormat(type=wanted.type, json_schema=schema), param)


def _told(message: AnthropicMessage, where: str) -> list[dict[str, Any]]:
    """One message as templates know them: results of tools come first, in messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts: list[str] = []
    told: list[dict[str, Any]] = []
    own: dict[str, Any] = {"role": message.role}
    for number, block in enumerate(message.content):
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ToolUseBlock(id=call_id, name=name, input=arguments):
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                own.setdefault("tool_calls", []).append(call)
            case ToolResultBlock(tool_use_id=call_id, content=content, is_error=is_error):
                text = _text(content or "")
                result = f"Error: {text}" if is_error else text
                told.append({"role": "tool", "tool_call_id": call_id, "content": result})
            case ThinkingBlock(thinking=thinking):
                own["reasoning_content"] = thinking
            case _:
                place = f"{where}.content.{number}"
                raise UnsupportedParameter(f"{place}: only text and tools are supported", param=place)
    own["content"] = "\n".join(texts)
    return [*told, own] if texts or "tool_calls" in own or not told else told


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
