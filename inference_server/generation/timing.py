"""When things happened to one request, told to the metrics as they happen. Owner: the request."""

from __future__ import annotations

import time

from inference_server.telemetry.metrics import Metrics
from inference_server.types import FinishReason, Usage


class RequestTimer:
    """Times are of the monotonic clock."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._started_s = time.monotonic()
        self._submitted_s = self._started_s
        self._first_token_s: float | None = None
        self._last_token_s = self._started_s
        self.stage = "queue"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the service took the request."""
        return time.monotonic() - self._started_s

    def leased(self) -> None:
        """The model is ready for this request."""
        self._submitted_s = time.monotonic()
        self.stage = "generation"
        self._metrics.queue_time.labels(self._model).observe(self._submitted_s - self._started_s)

    def token(self) -> None:
        """A delta with at least one token has come."""
        now_s = time.monotonic()
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._metrics.ttft.labels(self._model).observe(now_s - self._started_s)
            self._metrics.prefill_time.labels(self._model).observe(now_s - self._submitted_s)
        else:
            self._metrics.itl.labels(self._model).observe(now_s - self._last_token_s)
        self._last_token_s = now_s

    def finished(self, usage: Usage, reason: FinishReason) -> None:
        """The answer is complete."""
        first_s = self._started_s if self._first_token_s is None else self._first_token_s
        self._metrics.request_finished(
            self._model, usage, reason, e2e_s=self.elapsed_s, decode_s=self._last_token_s - first_s
        )

    def cancelled(self) -> None:
        """The client left."""
        self._metrics.cancelled.labels(self._model, self.stage).inc()
