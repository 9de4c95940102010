"""What single tokens spell: bytes and text, for log-probabilities and /tokenize. Knows no scores."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

MAX_KEPT = 8192  # spellings; many scored tokens are the same few
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The tokens of one tokenizer, each by itself. Immutable, but for what it remembers of them.

    Three kinds of vocabulary are known by the tokenizer's decoder: byte-level (GPT-2's: a character stands
    for each byte), metaspace (SentencePiece's: "▁" is a space, and `<0x0A>` one byte), and plain text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {number: token.content for number, token in added.items()}
        self._plain_added = {token.content: number for number, token in added.items() if not token.special}
        kinds = set(_kinds(_decoder(tokenizer)))
        self._byte_of = _byte_alphabet() if "ByteLevel" in kinds else None
        self._has_byte_tokens = "ByteFallback" in kinds
        self._has_visible_spaces = bool(kinds & {"Metaspace", "Replace"})
        self.text_and_raw = functools.lru_cache(maxsize=MAX_KEPT)(self._text_and_raw)

    def spelling(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty for an id that it does not have."""
        return self._tokenizer.id_to_token(token_id) or ""

    def plain_added(self, text: str) -> int | None:
        """The token that was added to the vocabulary for this very text, and is no special one."""
        return self._plain_added.get(text)

    def raw(self, token_id: int) -> bytes:
        """The bytes that the token stands for; part of a character, perhaps."""
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        token = self.spelling(token_id)
        if self._byte_of is not None:
            try:
                return bytes(map(self._byte_of.__getitem__, token))
            except KeyError:  # plain text in a byte-level vocabulary
                pass
        if self._has_byte_tokens and (found := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return (token.replace("▁", " ") if self._has_visible_spaces else token).encode()

    def text(self, token_id: int) -> str:
        r"""The token as text; bytes that are no whole character are written as `\xe2`."""
        return self.raw(token_id).decode(errors="backslashreplace")

    def _text_and_raw(self, token_id: int) -> tuple[str, bytes]:
        """`text` and `raw`."""
        raw = self.raw(token_id)
        return raw.decode(errors="backslashreplace"), raw


def _decoder(tokenizer: Tokenizer) -> Any:
    decoder = tokenizer.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())


def _kinds(decoder: Any) -> Iterator[str]:
    """The types of a decoder and of those inside it."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", ()):
            yield from _kinds(inner)


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of GPT-2's alphabet stands for.

    Printable Latin-1 bytes stand for themselves, the others, in order, for the characters from U+0100 on.
    """
    alphabet = ByteLevel.alphabet()
    plain = {char: ord(char) for char in alphabet if ord(char) < 256}
    others = sorted(char for char in alphabet if ord(char) >= 256)
    rest = [byte for byte in range(256) if byte not in plain.values()]
    return plain | dict(zip(others, rest, strict=True))
