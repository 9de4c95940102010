"""One answer of a request: a worker's tokens in, text out, until an end or a stop string. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from inference_server.errors import InternalError
from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.recorder import AnswerRecorder
from inference_server.generation.requests import TextDelta
from inference_server.generation.stopping import StopStrings
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
        detokenizer: Detokenizer,
        stops: StopStrings,
        recorder: AnswerRecorder,
    ) -> None:
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._index = index
        self._request = request
        self._worker = worker
        self._detokenizer = detokenizer
        self._stops = stops
        self._recorder = recorder

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """The text as it comes; the last piece has a finish reason. Closing it aborts the work.

        Raises:
            WorkerDied, InternalError, InvalidRequest: as `Worker.generate`.
        """
        async with aclosing(self._worker.generate(self._request)) as tokens:
            async for delta in tokens:
                text, reason = self._advance(delta)
                if reason is not None:
                    self._recorder.finished(reason, self.num_output_tokens)
                    yield TextDelta(self._index, text, reason)
                    return
                if text:
                    yield TextDelta(self._index, text)
        raise InternalError("the model ended the request without an answer")

    def _advance(self, delta: TokenDelta) -> tuple[str, FinishReason | None]:
        self.num_cached_tokens += delta.num_cached_tokens
        if delta.finish_reason is FinishReason.ABORT:
            raise InternalError("the model gave up the request")
        ended = delta.finish_reason is FinishReason.STOP  # its last token says that it ended; it is no text
        text, num_tokens = self._say(delta.token_ids[:-1] if ended else delta.token_ids)
        num_tokens += ended and not self._stops.stopped
        self.num_output_tokens += num_tokens
        self._recorder.tokens(num_tokens)
        if delta.finish_reason is not None and not self._stops.stopped:
            text += self._stops.feed(self._detokenizer.flush())
            text += "" if self._stops.stopped else self._stops.flush()
        return text, FinishReason.STOP if self._stops.stopped else delta.finish_reason

    def _say(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text of these tokens, and how many they are, up to the one that completes a stop string."""
        text = ""
        for num_tokens, token_id in enumerate(token_ids, 1):
            text += self._stops.feed(self._detokenizer.feed((token_id,)))
            if self._stops.stopped:
                return text, num_tokens
        return text, len(token_ids)


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
