"""What an answer must look like: a `GrammarSpec` in the grammar library's form, checked under fixed limits.

The library (llguidance) needs neither torch nor a network. Its limits bound work and memory by counting,
not by the clock, so a grammar is refused or not whatever else the machine does.
"""

from __future__ import annotations

import json
import re

import llguidance

from inference_server.errors import InvalidRequest
from inference_server.structured.dates import with_calendar_dates
from inference_server.structured.idle_words import without_idle_words
from inference_server.types import GrammarSpec

MAX_GRAMMAR_CHARS = 128 * 1024  # of the schema, expression or grammar as it was sent
MAX_REASON_CHARS = 300
# An object is written as Python's json.dumps would. With free white space a model may write nothing else.
JSON_STYLE: llguidance.JsonCompileOptions = {  # type: ignore[name-defined]
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_BACKTRACE = re.compile(r"\s*<(backtrace|state)>.*", re.DOTALL)


def limits() -> llguidance.LLParserLimits:
    """Of one grammar, at its compilation and at each token."""
    return llguidance.LLParserLimits(verbose_errors=False)


def library_grammar(spec: GrammarSpec) -> str:
    """The grammar in the library's own notation.

    Raises:
        InvalidRequest: the text is too long, or is no schema, list or grammar at all.
    """
    if len(spec.text) > MAX_GRAMMAR_CHARS:
        raise refusal(spec, f"it has {len(spec.text)} characters; the limit is {MAX_GRAMMAR_CHARS}")
    try:
        match spec.kind:
            case "json_schema":
                schema = rewritten(spec.text)
                return llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=JSON_STYLE)
            case "regex":
                return llguidance.LLMatcher.grammar_from_regex(spec.text)
            case "choice":
                return llguidance.grammar_from("choice", spec.text)
            case "grammar":
                return llguidance.grammar_from("grammar", spec.text)
    except (ValueError, RecursionError) as error:
        raise refusal(spec, str(error)) from error


def rewritten(schema: str) -> str:
    """The schema as the library takes it."""
    if '"format"' not in schema and '"propertyNames"' not in schema:
        return schema
    return json.dumps(with_calendar_dates(without_idle_words(json.loads(schema))))


def check_grammar(spec: GrammarSpec) -> None:
    """Refuse what is seen to be wrong without a model's tokenizer. May take a second: not on the event loop.

    Raises:
        InvalidRequest: with the library's reason.
    """
    validate = llguidance.LLMatcher.validate_grammar_with_warnings
    is_wrong, messages = validate(library_grammar(spec), limits=limits())
    if is_wrong:
        raise refusal(spec, messages[0])


def refusal(spec: GrammarSpec, reason: str) -> InvalidRequest:
    """What the client is told of a grammar that cannot be used."""
    shown = " ".join(_BACKTRACE.sub("", reason).split())
    printable = "".join(char if char.isprintable() else "?" for char in shown[:MAX_REASON_CHARS])
    return InvalidRequest(f"{spec.param}: {_KINDS[spec.kind]} cannot be used: {printable}", param=spec.param)


_KINDS = {
    "json_schema": "this JSON schema",
    "regex": "this regular expression",
    "choice": "this list of choices",
    "grammar": "this grammar",
}
