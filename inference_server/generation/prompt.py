"""From messages or text to token ids, with the model's own tokenizer and chat template.

Reads a prepared folder; needs neither torch nor transformers. Templates come from the model's repository
only, never from a request, and run in jinja2's immutable sandbox.
"""

from __future__ import annotations

import datetime
import functools
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from inference_server.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from inference_server.generation.requests import ChatPrompt
from inference_server.generation.token_texts import TokenTexts
from inference_server.generation.tools import told_in_text

MAX_RENDERED_CHARS = 8 * 1024 * 1024


class PromptTemplate:
    """The tokenizer and chat template of one model. Immutable; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelLoadFailed if the folder's tokenizer or template cannot be read."""
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.no_truncation()  # a repository's file may have either switched on
            self.tokenizer.no_padding()
        except Exception as error:
            raise ModelLoadFailed(f"the model's tokenizer cannot be read: {type(error).__name__}") from error
        self.texts = TokenTexts(self.tokenizer)
        config = _read_json(folder / "tokenizer_config.json")
        self._names = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}
        self._specials = _special_tokens(self.tokenizer)
        self._seam = f"\ue000{secrets.token_hex(8)}\ue001"  # where special-token text is cut, see _defused
        self._end = f"\ue000{secrets.token_hex(8)}\ue002"  # where a message ends that is to be continued
        self.template_source = _template_source(folder, config)
        self._template = _compile(self.template_source)
        self._knows_tools = _looks_at_tools(self.template_source)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text's own."""
        encoding = self._encoding("a", add_special_tokens=True)
        is_special = encoding.special_tokens_mask
        num_before = [*is_special, 0].index(0)
        return encoding.ids[:num_before], encoding.ids[num_before + is_special.count(0) :]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model defines how a conversation is written."""
        return self._template is not None

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer itself adds, if wanted."""
        return self._encoding(text, add_special_tokens=add_special_tokens).ids

    def encode_cut(self, text: str, max_tokens: int) -> list[int]:
        """As `encode_text`, but of the text's beginning only: `max_tokens` ids, special ones included."""
        before, after = self._around
        room = max(0, max_tokens - len(before) - len(after))
        ids = self._encoding(text, add_special_tokens=False).ids[:room]
        return [*before, *ids, *after][:max_tokens]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Token ids of a conversation. Text that spells a special token is encoded as text.

        Raises:
            UnsupportedParameter: the model has no chat template.
            InvalidRequest: the template refuses these messages.
        """
        ids: list[int] = []
        for number, piece in enumerate(self.render(prompt).split(self._seam)):
            adds = prompt.add_special_tokens and number == 0
            ids += self._encoding(piece, add_special_tokens=adds).ids
        return ids

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as the template writes it, with seams inside spelled-out special tokens.

        Raises: as `encode_chat`.
        """
        if self._template is None:
            raise UnsupportedParameter(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        told = prompt.messages if self._knows_tools else told_in_text(prompt.messages, prompt.tools)
        messages = [self._defused(message) for message in told]
        if prompt.continue_final_message:
            messages[-1] = _marked(messages[-1], self._end)
        variables = {
            "tools": None,  # as transformers has it: templates ask whether they are none
            "documents": None,
            **self._defused(prompt.variables),
            **self._names,
            "messages": messages,
            "add_generation_prompt": prompt.add_generation_prompt and not prompt.continue_final_message,
        }
        if prompt.tools and self._knows_tools:
            variables["tools"] = self._defused(prompt.tools)
        text = self._written(self._template, variables)
        return self._cut(text) if prompt.continue_final_message else text

    def _written(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        try:
            return _joined(template.generate(variables))
        except InvalidRequest:
            raise
        except _TemplateRefusal as refusal:
            raise InvalidRequest(f"the model's chat template says: {refusal}", param="messages") from None
        except Exception as error:  # whatever a template may do wrong, the messages made it do it
            raise InvalidRequest(
                f"the model's chat template cannot write these messages ({type(error).__name__})",
                param="messages",
            ) from error

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """As `Tokenizer.encode`, which holds Python's global lock; a batch does not.

        A batch of one is encoded in the thread that asks for it.
        """
        return self.tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def _cut(self, text: str) -> str:
        """The text up to where the last message's own ends."""
        before, mark, _ = text.rpartition(self._end)
        if not mark:
            raise InvalidRequest(
                "continue_final_message: the model's chat template does not write the last message as it is",
                param="continue_final_message",
            )
        return before

    def _defused(self, value: Any) -> Any:
        """A copy of `value` in which no string spells a special token without a seam inside."""
        if isinstance(value, str):
            for special in self._specials:
                if special in value:
                    value = value.replace(special, special[0] + self._seam + special[1:])
            return value
        if isinstance(value, Mapping):
            return {self._defused(key): self._defused(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._defused(entry) for entry in value]
        return value


def _marked(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """A message whose text ends with a mark."""
    return {**message, "content": str(message["content"]) + mark}


def _joined(pieces: Iterator[str]) -> str:
    """The text, given up as soon as it is too long."""
    kept: list[str] = []
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_RENDERED_CHARS:
            raise InvalidRequest("the conversation is too long once written out", param="messages")
        kept.append(piece)
    return "".join(kept)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`: marks for training what the assistant says. It is written."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        """What stands in the block; variables set there end with it, as in transformers."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


_EXTENSIONS = (loopcontrols, _GenerationBlock)


class _TemplateRefusal(Exception):  # noqa: N818
    """A template called `raise_exception`."""


def _compile(source: str | None) -> jinja2.Template | None:
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=_EXTENSIONS)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelLoadFailed(f"the model's chat template does not compile: {error.message}") from error


def _looks_at_tools(source: str | None) -> bool:
    """Whether a template, which compiles, has a place for tools."""
    if source is None or "tools" not in source:
        return False
    tree = jinja2.Environment(extensions=_EXTENSIONS).parse(source)
    return "tools" in meta.find_undeclared_variables(tree)


def _refuse(message: str) -> None:
    raise _TemplateRefusal(str(message)[:500])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escaping of jinja2's own filter, as checkpoints expect it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    added = tokenizer.get_added_tokens_decoder().values()
    texts = {token.content for token in added if token.special and len(token.content) > 1}
    return tuple(sorted(texts, key=len, reverse=True))


def _token_text(value: Any) -> str:
    """A token in tokenizer_config.json is a string, or an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"{path.name} cannot be read: {type(error).__name__}") from error
    return value if isinstance(value, dict) else {}
