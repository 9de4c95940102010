"""Which parser reads a model's answers: what its entry says, or what its chat template writes."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.generation.parsing import think
from inference_server.generation.parsing.calls import ArgumentsParser, CallListParser
from inference_server.generation.parsing.events import AnswerParser
from inference_server.generation.parsing.form import FormOrCallsParser
from inference_server.generation.parsing.hermes import CLOSE, OPEN, HermesParser
from inference_server.generation.parsing.plain import PlainParser
from inference_server.generation.parsing.whole import PYTHON_TAG, TOOL_CALLS, LlamaParser, MistralParser
from inference_server.generation.token_texts import TokenTexts
from inference_server.generation.tools import ToolUse
from inference_server.structured.calls import form_or_calls
from inference_server.types import GrammarSpec

_MARKS = {"mistral": TOOL_CALLS, "llama3": PYTHON_TAG, "hermes": OPEN}  # in the order of their certainty


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a model marks its calls and its reasoning; "none": not at all."""

    tools: str
    reasoning: str

    @property
    def marks_are_special(self) -> bool:
        """Whether marks are special tokens, which are no text unless they are asked for."""
        return self.tools in ("mistral", "llama3")


def spelling_of(tool_parser: str, reasoning_parser: str, template: str | None) -> Spelling:
    """What the entry names; where it says "auto", what the template's source shows."""
    text = template or ""
    if tool_parser == "auto":
        tool_parser = next((name for name, mark in _MARKS.items() if mark in text), "hermes")
    if reasoning_parser == "auto":
        reasoning_parser = "think" if think.OPEN in text or think.CLOSE in text else "none"
    return Spelling(tool_parser, reasoning_parser)


def form_of(form: GrammarSpec, spelling: Spelling | None, use: ToolUse, texts: TokenTexts) -> GrammarSpec:
    """The form that the worker is to hold the answer to, or calls if the model may and can mark them."""
    if spelling is None or spelling.tools != "hermes" or use.demands:
        return form
    marks = [mark if (token := texts.plain_added(mark)) is None else token for mark in (OPEN, CLOSE)]
    return form_or_calls(form, use.names, marks=marks, allows_several=use.allows_several) or form


def parser_for(
    spelling: Spelling,
    use: ToolUse | None,
    *,
    prompt_end: str,
    has_form: bool = False,
    may_call: bool = False,
) -> AnswerParser | None:
    """A parser of one answer; None where nothing is marked.

    `prompt_end` is how the prompt's text ends; `has_form`: a grammar holds all of the answer, so that it is
    content even where the template has opened a thought; `may_call`: or it is calls, see `form_of`.
    """
    if use is not None and use.name is not None:
        return ArgumentsParser(use.name)
    if use is not None and use.must_call:
        return CallListParser()
    if has_form:
        return FormOrCallsParser(use.names) if use is not None and may_call else None
    parser = None if use is None else _calls(spelling.tools, use.names)
    if spelling.reasoning == "think":
        is_inside = prompt_end.rstrip().endswith(think.OPEN)
        return think.ThinkParser(parser or PlainParser(), is_inside=is_inside)
    return parser


def _calls(name: str, names: frozenset[str]) -> AnswerParser | None:
    if name == "llama3":
        return LlamaParser(names)
    if name == "mistral":
        return MistralParser(names)
    return HermesParser(names) if name == "hermes" else None
