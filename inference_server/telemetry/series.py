"""What one model's requests and steps are measured by: its series of every family, found once.

Finding a series by its labels takes longer than counting in it, and a step counts a dozen times. Owner: the
event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_server.telemetry.buckets import BATCH_BUCKETS
from inference_server.telemetry.outcomes import Outcome
from inference_server.types import EngineStats, FinishReason

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from inference_server.telemetry.metrics import Metrics

ENDINGS = (FinishReason.STOP, FinishReason.LENGTH)
NOTHING_YET = EngineStats()


class ModelSeries:
    """What every request of one model is measured by."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.queue_time = metrics.queue_time.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.prompt_length = metrics.prompt_length.labels(model)
        self.output_tokens = metrics.output_tokens.labels(model)
        self.output_length = metrics.output_length.labels(model)
        self.ttft = metrics.ttft.labels(model)
        self.prefill_time = metrics.prefill_time.labels(model)
        self.itl = metrics.itl.labels(model)
        self.steps = StepSeries(metrics, model)
        self._outcomes = {outcome: metrics.requests.labels(model, outcome.value) for outcome in Outcome}
        self._success = {reason: metrics.success.labels(model, reason.value) for reason in ENDINGS}
        self._e2e = metrics.e2e.labels(model)
        self._decode_time = metrics.decode_time.labels(model)
        self._tpot = metrics.tpot.labels(model)

    def ended(self, outcome: Outcome) -> None:
        """A request has ended, whatever it asked for."""
        self._outcomes[outcome].inc()

    def embedded(self, e2e_s: float) -> None:
        """A request for embeddings is complete."""
        self._success[FinishReason.STOP].inc()
        self._e2e.observe(e2e_s)

    def answer_finished(
        self, reason: FinishReason, num_tokens: int, *, e2e_s: float, decode_s: float
    ) -> None:
        """An answer of `num_tokens` is complete."""
        self.output_length.observe(num_tokens)
        self._success[reason].inc()
        self._e2e.observe(e2e_s)
        self._decode_time.observe(decode_s)
        if num_tokens > 1:
            self._tpot.observe(decode_s / (num_tokens - 1))


class StepSeries:
    """What every step of one model's workers is measured by. A worker counts from zero, these go on."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._running = metrics.running.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._kv_usage = metrics.kv_usage.labels(model)
        self._iteration = metrics.iteration.labels(model)
        self._totals = (
            (metrics.preemptions.labels(model), "num_preemptions"),
            (metrics.cache_queries.labels(model), "prefix_cache_queries"),
            (metrics.cache_hits.labels(model), "prefix_cache_hits"),
            (metrics.draft_tokens.labels(model), "num_draft_tokens"),
            (metrics.accepted_tokens.labels(model), "num_accepted_tokens"),
        )
        self._inference = metrics.inference
        self._model = model
        self._by_batch_size: dict[int, Histogram] = {}
        self._before = NOTHING_YET

    def load(self, num_running: int, num_waiting: int, kv_cache_usage: float) -> None:
        """What the model is doing at the moment."""
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        self._kv_usage.set(kv_cache_usage)

    def worker_gone(self) -> None:
        """Nothing runs any more; the next worker counts from zero."""
        self._before = NOTHING_YET
        self.load(0, 0, 0.0)

    def step(self, stats: EngineStats) -> None:
        """A worker has finished one step."""
        self.load(stats.num_running, stats.num_waiting, stats.kv_cache_usage)
        for counter, name in self._totals:
            grown = getattr(stats, name) - getattr(self._before, name)
            if grown > 0:
                counter.inc(grown)
        self._before = stats
        if stats.step_num_tokens:
            self._iteration.observe(stats.step_num_tokens)
            self._of_batch_size(stats.step_num_seqs).observe(stats.step_seconds)

    def _of_batch_size(self, num_seqs: int) -> Histogram:
        bucket = next((size for size in BATCH_BUCKETS if num_seqs <= size), BATCH_BUCKETS[-1])
        series = self._by_batch_size.get(bucket)
        if series is None:
            series = self._by_batch_size[bucket] = self._inference.labels(self._model, str(bucket))
        return series
