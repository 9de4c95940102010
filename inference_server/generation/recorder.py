"""Times and counts of one request, told to metrics and timeline as they happen. Knows no text and no HTTP.

Owner: the request. Times are seconds on the service's clock.
"""

from __future__ import annotations

from collections.abc import Callable

from inference_server.errors import HelixFlowError, InternalError
from inference_server.telemetry.metrics import Metrics
from inference_server.telemetry.outcomes import Outcome, outcome_of
from inference_server.telemetry.series import ModelSeries
from inference_server.tracing.timeline import CANCELLED, Timeline
from inference_server.types import FinishReason, Usage
from inference_server.worker.protocol import Progress

Clock = Callable[[], float]
_FETCHING = ("download", "convert")  # stages of `Progress`


class RequestRecorder:
    """One request for a configured model, from its arrival on; makes an `AnswerRecorder` per answer."""

    def __init__(self, metrics: Metrics, model: str, clock: Clock, timeline: Timeline | None = None) -> None:
        self._metrics = metrics
        self._model = model
        self._series = metrics.of(model)
        self._clock = clock
        self._arrived_s = clock()
        self._stage = "queue"
        self._when_decoding: Callable[[], None] | None = None
        self._timeline = Timeline() if timeline is None else timeline
        self._timeline.model = model
        self._timeline.enter("queue", self._arrived_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return self._clock() - self._arrived_s

    def when_decoding(self, callback: Callable[[], None]) -> None:
        """Call this when the first token of the first answer has come."""
        self._when_decoding = callback

    def loading(self, progress: Progress) -> None:
        """The model that it waits for is on its way; a wait for memory is one for others."""
        if progress.stage == "memory":
            self._timeline.enter("queue", self._clock())
        else:
            self._timeline.enter("fetch" if progress.stage in _FETCHING else "load", self._clock())

    def loaded(self) -> None:
        """The model is there; what it was asked may still have to be encoded."""
        self._timeline.enter("queue", self._clock())

    def leased(self) -> None:
        """The model's worker gets the request."""
        self._stage = "prefill"
        self._timeline.enter("prefill", self._clock())
        self._series.queue_time.observe(self.elapsed_s)

    def prompt(self, num_tokens: int) -> None:
        """A prompt, of one or several answers, goes to the worker."""
        self._series.prompt_tokens.inc(num_tokens)
        self._series.prompt_length.observe(num_tokens)

    def submitted(self) -> AnswerRecorder:
        """One answer is asked of the worker."""
        return AnswerRecorder(self._series, self._clock, self._arrived_s, self._decoding, self._timeline)

    def used(self, usage: Usage) -> None:
        """The worker is done with it, whether it is complete or not, and it has come to this."""
        self._timeline.leave(self._clock())
        self._timeline.num_prompt_tokens = usage.prompt_tokens
        self._timeline.num_cached_tokens = usage.cached_tokens
        self._timeline.num_output_tokens = usage.completion_tokens

    def embedded(self) -> None:
        """All vectors of a request for embeddings are there."""
        self._series.embedded(self.elapsed_s)

    def completed(self) -> None:
        """The request ended well."""
        self._series.ended(Outcome.OK)

    def refused(self, error: HelixFlowError) -> None:
        """The request ended with this error."""
        self._metrics.rejected.labels(self._model, error.code).inc()
        self._series.ended(outcome_of(error))
        self._ended(error.code)

    def broken(self) -> None:
        """The request met a bug: nothing raises other errors on purpose."""
        self._metrics.rejected.labels(self._model, InternalError.code).inc()
        self._series.ended(Outcome.FAILED)
        self._ended(InternalError.code)

    def cancelled(self) -> None:
        """The client left."""
        self._metrics.cancelled.labels(self._model, self._stage).inc()
        self._series.ended(Outcome.CANCELLED)
        self._ended(CANCELLED)

    def _decoding(self) -> None:
        self._stage = "decode"
        self._timeline.enter("decode", self._clock())
        if self._when_decoding is not None:
            self._when_decoding()

    def _ended(self, error: str) -> None:
        self._timeline.error = error
        self._timeline.leave(self._clock())


class AnswerRecorder:
    """One answer, from the submission of its prompt on."""

    def __init__(
        self,
        series: ModelSeries,
        clock: Clock,
        arrived_s: float,
        on_first_token: Callable[[], None],
        timeline: Timeline,
    ) -> None:
        self._series = series
        self._clock = clock
        self._arrived_s = arrived_s
        self._on_first_token = on_first_token
        self._timeline = timeline
        self._submitted_s = clock()
        self._first_token_s: float | None = None
        self._last_token_s = self._submitted_s

    def tokens(self, num_tokens: int) -> None:
        """Tokens of one step have come."""
        if not num_tokens:
            return
        now_s = self._clock()
        self._series.output_tokens.inc(num_tokens)
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._on_first_token()
            self._series.ttft.observe(now_s - self._arrived_s)
            self._series.prefill_time.observe(now_s - self._submitted_s)
        else:
            self._series.itl.observe((now_s - self._last_token_s) / num_tokens)
        self._last_token_s = now_s

    def finished(self, reason: FinishReason, num_tokens: int) -> None:
        """The answer is complete."""
        self._timeline.finish_reasons.append(reason.value)
        first_s = self._last_token_s if self._first_token_s is None else self._first_token_s
        self._series.answer_finished(
            reason,
            num_tokens,
            e2e_s=self._clock() - self._arrived_s,
            decode_s=self._last_token_s - first_s,
        )
