"""One answer of a request: a worker's tokens in, text out, until an end or a stop string. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from inference_server.errors import InternalError
from inference_server.generation.answer_text import AnswerText
from inference_server.generation.recorder import AnswerRecorder
from inference_server.generation.requests import TextDelta, TextRequest
from inference_server.generation.scores import TOKENS_PER_TURN, ScoredToken, SharedPrompt
from inference_server.types import FinishReason, GenerationRequest, TokenDelta
from inference_server.worker.handle import Worker


class Answer:
    """The state of one answer. Owner: the request, which iterates over `deltas` once."""

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        worker: Worker,
        *,
        wanted: TextRequest,
        prompt: SharedPrompt,
        text: AnswerText,
        recorder: AnswerRecorder,
    ) -> None:
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._sum_logprobs = 0.0
        self._index = index
        self._request = request
        self._worker = worker
        self._wanted = wanted
        self._prompt = prompt
        self._text = text
        self._recorder = recorder
        self._is_echoed = not wanted.echo

    @property
    def mean_logprob(self) -> float:
        """How likely the model found its tokens, on average; of a request with `logprobs`."""
        return self._sum_logprobs / max(1, self.num_output_tokens)

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """The text as it comes; the last piece has a finish reason. Closing it aborts the work.

        Raises:
            WorkerDied, InternalError, InvalidRequest: as `Worker.generate`.
        """
        async with aclosing(self._worker.generate(self._request)) as tokens:
            async for delta in tokens:
                if delta.prompt_scores:
                    await self._prompt.add(delta.prompt_scores)
                if not delta.token_ids and delta.finish_reason is None:
                    continue
                piece = self._advance(delta)
                if not self._is_echoed:
                    self._is_echoed = True
                    before, piece = await self._echoed(piece)
                    for part in before:
                        yield part
                        await asyncio.sleep(0)
                if piece.finish_reason is not None:
                    self._recorder.finished(piece.finish_reason, self.num_output_tokens)
                    yield piece
                    return
                if piece.text or piece.scored:
                    yield piece
        raise InternalError("the model ended the request without an answer")

    def _advance(self, delta: TokenDelta) -> TextDelta:
        if delta.finish_reason is FinishReason.ABORT:
            raise InternalError("the model gave up the request")
        self.num_cached_tokens += delta.num_cached_tokens
        # The token that says that the answer ends is no text.
        hides_last = delta.finish_reason is FinishReason.STOP and not self._wanted.include_stop
        text, num_tokens = self._text.feed(
            delta.token_ids[:-1] if hides_last else delta.token_ids, delta.scores
        )
        if delta.finish_reason is not None:
            text += self._text.finish()
            if hides_last and self._text.stop is None:
                num_tokens += 1
                if self._wanted.scores_end:
                    self._text.end(delta.token_ids[-1], delta.scores)
        self._count(delta, num_tokens)
        return self._piece(delta, text)

    def _count(self, delta: TokenDelta, num_tokens: int) -> None:
        self.num_output_tokens += num_tokens
        self._recorder.tokens(num_tokens)
        if delta.scores:
            self._sum_logprobs += sum(score.logprob for score in delta.scores[:num_tokens])

    def _piece(self, delta: TokenDelta, text: str) -> TextDelta:
        stop = self._text.stop
        if stop is not None:
            return TextDelta(self._index, text, FinishReason.STOP, stop, self._text.scored(finished=True))
        reason = delta.finish_reason
        why = None
        if reason is FinishReason.STOP and delta.token_ids[-1] in self._request.sampling.stop_token_ids:
            why = delta.token_ids[-1]
        return TextDelta(self._index, text, reason, why, self._text.scored(finished=reason is not None))

    async def _echoed(self, piece: TextDelta) -> tuple[list[TextDelta], TextDelta]:
        """The first piece with the prompt before it, and pieces before it if that is long and scored."""
        scored: tuple[ScoredToken, ...] = ()
        if self._wanted.sampling.logprobs is not None:
            scored = await self._prompt.complete()
        if self._wanted.echo_only:
            self.num_output_tokens = 0
            piece = replace(piece, text="", finish_reason=FinishReason.LENGTH, scored=())
        before: list[TextDelta] = []
        num_told = num_chars = 0
        while len(scored) - num_told > TOKENS_PER_TURN:
            end = scored[num_told + TOKENS_PER_TURN].start
            tokens = scored[num_told : num_told + TOKENS_PER_TURN]
            before.append(TextDelta(self._index, self._prompt.text[num_chars:end], scored=tokens))
            num_told, num_chars = num_told + TOKENS_PER_TURN, end
        text = self._prompt.text[num_chars:] + piece.text
        return before, replace(piece, text=text, scored=scored[num_told:] + piece.scored)


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[TextDelta, None]:
    """The deltas of all answers as they come. One answer costs no task; of several each costs one."""
    if len(answers) == 1:
        async with aclosing(answers[0].deltas()) as deltas:
            async for delta in deltas:
                yield delta
        return
    queue: asyncio.Queue[TextDelta | Exception] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(answer, queue)) for answer in answers]
    num_open = len(answers)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_open -= item.finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(answer: Answer, queue: asyncio.Queue[TextDelta | Exception]) -> None:
    try:
        async with aclosing(answer.deltas()) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)
    except Exception as error:
        queue.put_nowait(error)
