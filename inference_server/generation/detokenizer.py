"""From token ids to text, a few ids at a time: only whole characters leave, and none is lost."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_PRIMING_TOKENS = 6  # of the prompt, so that the first token's leading space comes out right


class Detokenizer:
    """One request's stream of text. Owner: the request."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt_token_ids[-_PRIMING_TOKENS:]), skip_special_tokens=True)
        self._pending: list[int] = []  # ids that have not become text yet

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete, possibly empty."""
        text = ""
        for token_id in token_ids:
            self._pending.append(token_id)
            piece = self._step(token_id)
            if piece:
                text += piece
                self._pending.clear()
        return text

    def flush(self) -> str:
        """What is left at the end: an unfinished character becomes a replacement character."""
        pending, self._pending = self._pending, []
        return str(self._tokenizer.decode(pending, skip_special_tokens=True)) if pending else ""

    def _step(self, token_id: int) -> str | None:
        try:
            return self._stream.step(self._tokenizer, token_id)
        except Exception as error:
            # The library gives up on some byte sequences; a fresh stream goes on from the next character.
            if "Invalid prefix" not in str(error):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token_id)
