"""Log-probabilities as the API tells them: tokens with their text, and where each begins. Knows no JSON."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

import msgspec

from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.token_texts import TokenTexts
from inference_server.types import TokenScore

TOKENS_PER_TURN = 128  # scored in a row on the event loop: some 20 candidates each


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A token that may stand at some place. `logprob` None: nothing stands before it, so it has none."""

    token_id: int
    text: str
    raw: bytes
    logprob: float | None
    rank: int


class ScoredToken(msgspec.Struct, frozen=True, gc=False):
    """A token of a text, `start` characters into it, and the likeliest tokens there, likeliest first."""

    own: Candidate
    start: int
    top: tuple[Candidate, ...] = ()


def scored_token(texts: TokenTexts, token_id: int, start: int, score: TokenScore) -> ScoredToken:
    """Put the texts to a score."""
    top = tuple(
        [_candidate(texts, token, logprob, rank) for rank, (token, logprob) in enumerate(score.top, 1)]
    )
    return ScoredToken(_candidate(texts, token_id, score.logprob, score.rank), start, top)


def _candidate(texts: TokenTexts, token_id: int, logprob: float | None, rank: int) -> Candidate:
    text, raw = texts.text_and_raw(token_id)
    return Candidate(token_id, text, raw, logprob, rank)


class ScoreTrack:
    """The scored tokens of one answer, each let go with the text that it begins in. Owner: the answer.

    So a token whose text is held back, because it may begin a stop string, is held back too.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._held: deque[ScoredToken] = deque()

    def add(self, token_id: int, score: TokenScore, start: int) -> None:
        """One more token, which begins `start` characters into the answer."""
        self._held.append(scored_token(self._texts, token_id, start, score))

    def before(self, num_chars: int) -> tuple[ScoredToken, ...]:
        """Those that begin before `num_chars`, once."""
        free: list[ScoredToken] = []
        while self._held and self._held[0].start < num_chars:
            free.append(self._held.popleft())
        return tuple(free)

    def rest(self) -> tuple[ScoredToken, ...]:
        """All that are left."""
        free, self._held = tuple(self._held), deque()
        return free


class SharedPrompt:
    """One prompt and all that its answers share: its text, and its tokens' scores once the worker has them.

    Owner: the request. The first answer brings the scores; the others wait for them if they echo the prompt.
    """

    def __init__(
        self, token_ids: Seq[int], text: str, texts: TokenTexts, new_detokenizer: Callable[[], Detokenizer]
    ) -> None:
        """`new_detokenizer` of an empty text: it says where each token begins, if any is scored."""
        self.token_ids = tuple(token_ids)
        self.text = text
        self._texts = texts
        self._new_detokenizer = new_detokenizer
        self._detokenizer: Detokenizer | None = None
        self._num_chars = 0
        self._tokens: list[ScoredToken] = []
        self._complete = asyncio.Event()
        if len(self.token_ids) == 1:  # the worker has no scores for it
            self._begin()

    @property
    def tokens(self) -> tuple[ScoredToken, ...]:
        """The tokens that are scored by now."""
        return tuple(self._tokens)

    async def add(self, scores: Iterable[TokenScore]) -> None:
        """The scores of the next tokens; the first token of all has none. Others have turns meanwhile."""
        if not self._tokens:
            self._begin()
        for number, score in enumerate(scores, 1):
            token_id = self.token_ids[len(self._tokens)]
            self._append(scored_token(self._texts, token_id, self._num_chars, score))
            if number % TOKENS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def complete(self) -> tuple[ScoredToken, ...]:
        """All of its tokens, once all are scored."""
        await self._complete.wait()
        return self.tokens

    def _begin(self) -> None:
        self._append(ScoredToken(_candidate(self._texts, self.token_ids[0], None, 0), 0))

    def _append(self, token: ScoredToken) -> None:
        self._tokens.append(token)
        if self._detokenizer is None:
            self._detokenizer = self._new_detokenizer()
        self._num_chars += len(self._detokenizer.feed((token.own.token_id,)))
        if len(self._tokens) == len(self.token_ids):
            self._complete.set()
