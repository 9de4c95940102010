"""OpenAI's tools: what a request may offer, which one it may demand, and calls in a conversation."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.errors import InvalidRequest
from inference_server.generation.json_text import parse_json
from inference_server.generation.tools import ToolUse

MAX_TOOLS = 128  # OpenAI's
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call. `strict` changes nothing: a demanded call always fits."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which function."""

    name: FunctionName


class NamedChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Demands one function."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was called, with its arguments as JSON text; what a client has made of them is not looked at."""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call in a conversation's past. One that was streamed may still have its `index`."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the arguments as an object, if they are one."""
        try:
            arguments = parse_json(self.function.arguments)
        except ValueError:
            arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


Tools = Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def tool_use(
    tools: Sequence[FunctionTool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """The tools that the model is told of, and what it must do with them; None if there are none.

    Raises:
        InvalidRequest: two have one name, or one is demanded that is not there.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice demands a call, and there are no tools", param="tool_choice")
        return None
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: two functions have the same name", param="tools")
    for number, tool in enumerate(tools):
        if (tool.function.parameters or {}).get("type", "object") != "object":
            where = f"tools[{number}].function.parameters"
            raise InvalidRequest(f"{where}: its type must be object", param=where)
    if choice == "none":
        return None
    name = choice.function.name if isinstance(choice, NamedChoice) else None
    if name is not None and name not in names:
        raise InvalidRequest(f"tool_choice: there is no tool {name!r}", param="tool_choice")
    return ToolUse(
        tools=tuple(_plain(tool) for tool in tools),
        must_call=choice == "required",
        name=name,
        allows_several=parallel is not False,
    )


def _plain(tool: FunctionTool) -> dict[str, Any]:
    """As the client sent it, without what it left out."""
    function = {
        name: value for name, value in msgspec.structs.asdict(tool.function).items() if value is not None
    }
    return {"type": tool.type, "function": function}


def new_call_id() -> str:
    """A fresh id of a call."""
    return f"call_{secrets.token_hex(12)}"
