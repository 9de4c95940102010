"""Token ids → text, a few at a time, never cutting a character in two. Knows no stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_MIN_CONTEXT, _MAX_CONTEXT = 4, 24  # prompt tokens that decide how the first word joins on


class Detokenizer:
    """The text of one output. Special tokens give no text unless asked for. Owner: the request."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._context = self._tail(prompt_token_ids)  # ids whose text is out already
        self._pending: list[int] = []  # ids whose text is not complete yet
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=self._skips)

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        return "".join([self._step(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """What is left at the end: an incomplete character comes out as U+FFFD."""
        if not self._pending:
            return ""
        before = self._decoded(self._context)
        after = self._decoded([*self._context, *self._pending])
        self._pending = []
        return after[len(before) :] if after.startswith(before) else ""

    def _step(self, token_id: int) -> str:
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # "Invalid prefix encountered", a bare Exception: start anew from here
            text = self._restart()
        if text is None:
            return ""
        self._context, self._pending = self._pending, []
        return text

    def _restart(self) -> str:
        text = self.flush()
        self._context = []
        self._stream = DecodeStream(skip_special_tokens=self._skips)
        return text

    def _tail(self, token_ids: Sequence[int]) -> list[int]:
        """The shortest end of the prompt that does not begin inside a character."""
        tail: list[int] = []
        for length in range(min(_MIN_CONTEXT, len(token_ids)), min(_MAX_CONTEXT, len(token_ids)) + 1):
            tail = list(token_ids[len(token_ids) - length :])
            if not self._decoded(tail).startswith("�"):
                break
        return tail

    def _decoded(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skips))
