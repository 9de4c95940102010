"""From a request's token deltas to pieces of text: decoding, stop strings, usage."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.requests import TextDelta
from inference_server.generation.stopping import StopStrings
from inference_server.types import FinishReason, TokenDelta, Usage


class TextStream:
    """One request's output. Owner: the request."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids)
        self._stops = StopStrings(stop)
        self._num_prompt_tokens = len(prompt_token_ids)
        self._num_output_tokens = 0
        self._num_cached_tokens = 0

    def feed(self, delta: TokenDelta) -> TextDelta:
        """The text that is ready. A stop string ends the answer before the worker knows of it."""
        if not self._num_output_tokens:
            self._num_cached_tokens = delta.num_cached_tokens
        self._num_output_tokens += len(delta.token_ids)
        reason = delta.finish_reason
        # The token that ended the sequence says that it ended; it is no text.
        token_ids = delta.token_ids[:-1] if reason is FinishReason.STOP else delta.token_ids
        text = self._stops.feed(self._detokenizer.feed(token_ids))
        if reason is not None and not self._stops.stopped:
            text += self._stops.feed(self._detokenizer.flush())
        if self._stops.stopped:
            return TextDelta(text=text, finish_reason=FinishReason.STOP, usage=self.usage)
        if reason is None:
            return TextDelta(text=text)
        return TextDelta(text=text + self._stops.flush(), finish_reason=reason, usage=self.usage)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_output_tokens,
            cached_tokens=self._num_cached_tokens,
        )
