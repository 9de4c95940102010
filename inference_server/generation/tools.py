"""Tools that a request offers: the grammar that makes a model call them, and their telling in plain words.

Tools are in OpenAI's shape: {"type": "function", "function": {"name", "description", "parameters"}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_server.structured.json_schema import map_schemas
from inference_server.types import GrammarSpec

Tool = Mapping[str, Any]
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_HOW_TO_CALL = """\
You may call these functions. Their signatures are:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between marks, for each call:
<tool_call>
{{"name": "the function's name", "arguments": {{…}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request. `must_call`: at least one; `name`: this one; else the model decides."""

    tools: tuple[Tool, ...]
    must_call: bool = False
    name: str | None = None
    allows_several: bool = True

    @property
    def names(self) -> frozenset[str]:
        """Of the functions."""
        return frozenset(tool["function"]["name"] for tool in self.tools)

    @property
    def demands(self) -> bool:
        """Whether a call is demanded."""
        return self.must_call or self.name is not None

    def grammar(self) -> GrammarSpec | None:
        """What the answer must look like where a call is demanded: a tool's arguments, or a list of calls."""
        if self.name is not None:
            tool = next(tool for tool in self.tools if tool["function"]["name"] == self.name)
            return GrammarSpec("json_schema", json.dumps(_parameters(tool)), "tool_choice")
        if not self.must_call:
            return None
        return GrammarSpec("json_schema", json.dumps(self._list_schema()), "tool_choice")

    def _list_schema(self) -> dict[str, Any]:
        """A list of calls. Each tool's parameters are a definition, and its own references stay right."""
        definitions = {
            f"tool_{number}": _moved(_parameters(tool), f"#/$defs/tool_{number}")
            for number, tool in enumerate(self.tools)
        }
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": {"$ref": f"#/$defs/tool_{number}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, tool in enumerate(self.tools)
        ]
        schema = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "$defs": definitions}
        return schema if self.allows_several else schema | {"maxItems": 1}


def _parameters(tool: Tool) -> Mapping[str, Any]:
    found = tool["function"].get("parameters")
    return {**_ANY_OBJECT, **found} if found else _ANY_OBJECT


def _moved(schema: Mapping[str, Any], place: str) -> Any:
    """The schema with its references to itself as they are from a place within another one."""

    def moved(inner: dict[str, Any]) -> dict[str, Any]:
        target = inner.get("$ref")
        if not isinstance(target, str) or not target.startswith("#"):
            return inner
        return {**inner, "$ref": place + target[1:]}

    return map_schemas(schema, moved)


# ---------------------------------------------------------------- for templates that know no tools


def told_in_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[Mapping[str, Any]]:
    """The conversation with tools, calls and results written as text, as Hermes models have them."""
    told = [_in_text(message) for message in messages]
    if not tools:
        return told
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    how = _HOW_TO_CALL.format(tools=lines)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{how}"}, *told[1:]]
    return [{"role": "system", "content": how}, *told]


def _in_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls
    ]
    text = "\n".join([message["content"], *written] if message["content"] else written)
    return {"role": message["role"], "content": text}
