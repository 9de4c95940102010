"""One answer's tokens → its text, up to a stop string, with the scores of the tokens in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.scores import ScoredToken, ScoreTrack
from inference_server.generation.stopping import StopStrings
from inference_server.types import TokenScore


class AnswerText:
    """The text of one answer as it grows. Owner: the answer."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings,
        track: ScoreTrack | None = None,
        *,
        num_chars_before: int = 0,
    ) -> None:
        """`track`: if the tokens come with scores. `num_chars_before`: of the prompt, if it is echoed."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._track = track
        self._num_chars = num_chars_before  # and all text, held back or not
        self._num_safe = num_chars_before  # and the text that has left

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the text."""
        return self._stops.found

    def feed(self, token_ids: Seq[int], scores: Seq[TokenScore] = ()) -> tuple[str, int]:
        """The text that is safe to send, and how many of the tokens count.

        Those after the one that completes a stop string do not.
        """
        text = ""
        for number, token_id in enumerate(token_ids):
            if self._track is not None:
                self._track.add(token_id, scores[number], self._num_chars)
            text += self._say(self._detokenizer.feed((token_id,)))
            if self._stops.stopped:
                return text, number + 1
        return text, len(token_ids)

    def finish(self) -> str:
        """What is left to say once there are no more tokens; nothing after a stop string."""
        if self._stops.stopped:
            return ""
        text = self._say(self._detokenizer.flush())
        if not self._stops.stopped:
            rest = self._stops.flush()
            self._num_safe += len(rest)
            text += rest
        return text

    def end(self, token_id: int, scores: Seq[TokenScore]) -> None:
        """After `finish`: the token that said so, which has a score (the last one) and no text."""
        if self._track is not None:
            self._track.add(token_id, scores[-1], self._num_chars)

    def scored(self, *, finished: bool) -> tuple[ScoredToken, ...]:
        """The scored tokens whose text has begun to leave; after `finish`, all that belong to the text."""
        if self._track is None:
            return ()
        if finished and not self._stops.stopped:
            return self._track.rest()
        return self._track.before(self._num_safe)

    def _say(self, text: str) -> str:
        self._num_chars += len(text)
        safe = self._stops.feed(text)
        self._num_safe += len(safe)
        return safe
