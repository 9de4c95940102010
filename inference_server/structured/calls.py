"""A form, or calls of tools in its place, as one grammar: the model decides with its answer's first token."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from inference_server.structured.grammars import JSON_STYLE, MAX_GRAMMAR_CHARS, rewritten
from inference_server.types import GrammarSpec

_GRAMMAR = r"""start: form | calls
calls: call{several}
call: {opening} "\n"? body "\n"? {closing}
form: %json {form}
body: %json {call}
"""


def form_or_calls(
    form: GrammarSpec, names: Iterable[str], *, marks: Iterable[str | int], allows_several: bool
) -> GrammarSpec | None:
    """The grammar; None for a form that is not JSON of an object's schema, or is too long for it.

    `form` is right as it is. `marks` stand before and behind a call; one that is a token of its own, which
    the library would not take for its text, is given by its id. Of arguments it asks no more than that they
    are an object, as where there is no form: a tool that could not be demanded may still be offered.
    """
    if form.kind != "json_schema" or not isinstance(schema := json.loads(rewritten(form.text)), dict):
        return None
    opening, closing = (f"<[{mark}]>" if isinstance(mark, int) else _json(mark) for mark in marks)
    call = {
        "type": "object",
        "properties": {"name": {"enum": sorted(names)}, "arguments": {"type": "object"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    text = _GRAMMAR.format(
        several=r' ("\n" call)*' if allows_several else "",
        opening=opening,
        closing=closing,
        form=_json({"x-guidance": JSON_STYLE, **schema}),
        call=_json({"x-guidance": JSON_STYLE, **call}),
    )
    return GrammarSpec("grammar", text, form.param) if len(text) <= MAX_GRAMMAR_CHARS else None


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
