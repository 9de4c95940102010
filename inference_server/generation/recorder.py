"""Times and counts of one request, told to the metrics as they happen. Knows no text and no HTTP.

Owner: the request. Times are seconds on the service's clock.
"""

from __future__ import annotations

from collections.abc import Callable

from inference_server.errors import HelixFlowError, InternalError
from inference_server.telemetry.metrics import Metrics
from inference_server.telemetry.outcomes import Outcome, outcome_of
from inference_server.telemetry.series import ModelSeries
from inference_server.types import FinishReason

Clock = Callable[[], float]


class RequestRecorder:
    """One request for a configured model, from its arrival on; makes an `AnswerRecorder` per answer."""

    def __init__(self, metrics: Metrics, model: str, clock: Clock) -> None:
        self._metrics = metrics
        self._model = model
        self._series = metrics.of(model)
        self._clock = clock
        self._arrived_s = clock()
        self._stage = "queue"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return self._clock() - self._arrived_s

    def leased(self) -> None:
        """The model is there, and its worker gets the request."""
        self._stage = "prefill"
        self._series.queue_time.observe(self.elapsed_s)

    def prompt(self, num_tokens: int) -> None:
        """A prompt, of one or several answers, goes to the worker."""
        self._series.prompt_tokens.inc(num_tokens)
        self._series.prompt_length.observe(num_tokens)

    def submitted(self) -> AnswerRecorder:
        """One answer is asked of the worker."""
        return AnswerRecorder(self._series, self._clock, self._arrived_s, self._decoding)

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

    def broken(self) -> None:
        """The request met a bug: nothing raises other errors on purpose."""
        self._metrics.rejected.labels(self._model, InternalError.code).inc()
        self._series.ended(Outcome.FAILED)

    def cancelled(self) -> None:
        """The client left."""
        self._metrics.cancelled.labels(self._model, self._stage).inc()
        self._series.ended(Outcome.CANCELLED)

    def _decoding(self) -> None:
        self._stage = "decode"


class AnswerRecorder:
    """One answer, from the submission of its prompt on."""

    def __init__(
        self, series: ModelSeries, clock: Clock, arrived_s: float, on_first_token: Callable[[], None]
    ) -> None:
        self._series = series
        self._clock = clock
        self._arrived_s = arrived_s
        self._on_first_token = on_first_token
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
        first_s = self._last_token_s if self._first_token_s is None else self._first_token_s
        self._series.answer_finished(
            reason,
            num_tokens,
            e2e_s=self._clock() - self._arrived_s,
            decode_s=self._last_token_s - first_s,
        )
