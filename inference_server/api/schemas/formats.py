"""What an answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.errors import InvalidRequest
from inference_server.types import GrammarSpec

Choice = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
Pattern = Annotated[str, Meta(min_length=1)]
JsonSchema = dict[str, Any] | str  # a string holds JSON
_ANY_OBJECT = '{"type": "object"}'


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's `response_format.json_schema`. A schema is always kept to, be it `strict` or not."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`; one of these."""

    json: JsonSchema | None = None
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choice | None = None
    grammar: Pattern | None = None


class FormatFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every field that asks for a form. At most one of them may be used."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choice | None = None
    guided_grammar: Pattern | None = None

    def grammar(self) -> GrammarSpec | None:
        """The form that is asked for.

        Raises:
            InvalidRequest: there are several, or `response_format` lacks its schema.
        """
        form = self.response_format
        spec = None if form is None else grammar_of_format(form, "response_format")
        found = [*([] if spec is None else [spec]), *_of_structured(self.structured_outputs)]
        found += _of_values(
            "guided_", json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice,
            grammar=self.guided_grammar,
        )  # fmt: skip
        if len(found) > 1:
            names = " and ".join(spec.param for spec in found)
            raise InvalidRequest(f"{names} each ask for a form; send one", param=found[1].param)
        return found[0] if found else None


def grammar_of_format(wanted: ResponseFormat, param: str) -> GrammarSpec | None:
    """The form that a format asks for; `param` is what errors call it.

    Raises:
        InvalidRequest: it lacks its schema, or has one that its type does not take.
    """
    schema = wanted.json_schema
    if schema is not None and wanted.type != "json_schema":
        raise InvalidRequest(f"{param}: only type json_schema has a schema", param=param)
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return GrammarSpec("json_schema", _ANY_OBJECT, param)
    if schema is None:
        raise InvalidRequest(f"Missing required parameter: {param}.json_schema", param=f"{param}.json_schema")
    return GrammarSpec("json_schema", _json(schema.schema), param)


def _of_structured(wanted: StructuredOutputs | None) -> list[GrammarSpec]:
    if wanted is None:
        return []
    found = _of_values(
        "structured_outputs.",
        json=wanted.json, regex=wanted.regex, choice=wanted.choice, grammar=wanted.grammar,
    )  # fmt: skip
    if wanted.json_object:
        found.append(GrammarSpec("json_schema", _ANY_OBJECT, "structured_outputs.json_object"))
    return found


def _of_values(
    prefix: str, *, json: JsonSchema | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[GrammarSpec]:
    found = []
    if json is not None:
        text = json if isinstance(json, str) else _json(json)
        found.append(GrammarSpec("json_schema", text, f"{prefix}json"))
    if regex is not None:
        found.append(GrammarSpec("regex", regex, f"{prefix}regex"))
    if choice is not None:
        found.append(GrammarSpec("choice", _json(choice), f"{prefix}choice"))
    if grammar is not None:
        found.append(GrammarSpec("grammar", grammar, f"{prefix}grammar"))
    return found


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
