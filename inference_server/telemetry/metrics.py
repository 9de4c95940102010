"""Every metric, declared once, in a registry of its own. Names are vLLM's where the thing is the same.

Labels come from the configuration only: a model name that a client made up is never a label. Owner: the
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference_server.telemetry.buckets import (
    BATCH_BUCKETS,
    HTTP_BUCKETS,
    ITL_BUCKETS,
    LATENCY_BUCKETS,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
)
from inference_server.telemetry.families import Families
from inference_server.telemetry.lifecycle import LifecycleMetrics
from inference_server.telemetry.outcomes import Outcome
from inference_server.telemetry.server import ServerMetrics
from inference_server.types import EngineStats, FinishReason

WITHOUT_WORKER = ("unloaded", "failed")  # the states in which no process holds the model
ENDINGS = (FinishReason.STOP, FinishReason.LENGTH)
# What an operator is woken by or looks for; other reasons get a series when they first happen.
REASONS = (
    "queue_full",
    "model_load_failed",
    "model_loading",
    "insufficient_memory",
    "deadline_exceeded",
    "worker_died",
    "internal_error",
)
STAGES = ("queue", "prefill", "decode")


class Metrics(LifecycleMetrics, ServerMetrics):
    """All metrics of one server. It also is the model manager's observer."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        self._families = Families()
        LifecycleMetrics.__init__(self, self._families)
        ServerMetrics.__init__(self, self._families)
        self._totals: dict[str, EngineStats] = {}  # last seen counters per model, of the current worker
        self._series: dict[str, ModelSeries] = {}  # of every model there is
        self._declare_serving()
        self._declare_requests()
        self.sync_models(models)

    @property
    def registry(self) -> CollectorRegistry:
        """All series, for tests and other exporters."""
        return self._families.registry

    def render(self) -> tuple[bytes, str]:
        """The page of a scrape and its content type."""
        return self._families.render()

    # ------------------------------------------------------------ declarations

    def _declare_serving(self) -> None:
        gauge, histogram, counter = self._gauge, self._histogram, self._counter
        self.running = gauge("vllm:num_requests_running", "Requests in the running batch")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests that wait to be scheduled")
        self.kv_usage = gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1")
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Time to first token", TTFT_BUCKETS)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Time between tokens", ITL_BUCKETS)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token after the first", ITL_BUCKETS
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Request latency", LATENCY_BUCKETS)
        self.queue_time = histogram(
            "vllm:request_queue_time_seconds", "Wait for the model, loading included", LATENCY_BUCKETS
        )
        self.prefill_time = histogram(
            "vllm:request_prefill_time_seconds", "From submission to the first token", LATENCY_BUCKETS
        )
        self.decode_time = histogram(
            "vllm:request_decode_time_seconds", "From first to last token", LATENCY_BUCKETS
        )
        self.prompt_length = histogram("vllm:request_prompt_tokens", "Prompt tokens", TOKEN_BUCKETS)
        self.output_length = histogram("vllm:request_generation_tokens", "Output tokens", TOKEN_BUCKETS)
        self.iteration = histogram("vllm:iteration_tokens_total", "Tokens per step", TOKEN_BUCKETS)
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed")
        self.output_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self.success = counter("vllm:request_success", "Finished requests", "finished_reason")
        self.preemptions = counter("vllm:num_preemptions", "Sequences preempted for want of KV blocks")
        self.cache_queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache")
        self.cache_hits = counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache")
        self.draft_tokens = counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed and verified")
        self.accepted_tokens = counter("vllm:spec_decode_num_accepted_tokens", "Guesses that were right")
        self.inference = self._families.histogram(
            "model_inference_seconds", "Time of one step", HTTP_BUCKETS, "model", "batch_size"
        )

    def _declare_requests(self) -> None:
        families = self._families
        self.rejected = families.counter("helixflow_requests_rejected", "Requests refused", "model", "reason")
        self.cancelled = families.counter(
            "helixflow_requests_cancelled", "Requests whose client left", "model", "stage"
        )
        self.requests = families.counter(
            "helixflow_requests", "Requests by how they ended", "model", "outcome"
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._families.gauge(name, text, "model_name")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._families.counter(name, text, "model_name", *labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return self._families.histogram(name, text, buckets, "model_name")

    # ------------------------------------------------------------ models come and go

    def sync_models(self, models: Iterable[str]) -> None:
        """These are the models there are: new ones get their series, and gone ones lose all of theirs."""
        wanted = set(models)
        for model in wanted - self._series.keys():
            self.touch(model)
        for model in self._series.keys() - wanted:
            del self._series[model]
            self._totals.pop(model, None)
            self._families.forget(model)

    def touch(self, model: str) -> None:
        """See `LifecycleMetrics`."""
        LifecycleMetrics.touch(self, model)
        for gauge in (self.running, self.waiting, self.kv_usage):
            gauge.labels(model)
        for reason in REASONS:
            self.rejected.labels(model, reason)
        for stage in STAGES:
            self.cancelled.labels(model, stage)
        self.of(model)

    # ------------------------------------------------------------ the moment, at each scrape

    def set_load(self, model: str, *, num_running: int, num_waiting: int, kv_cache_usage: float) -> None:
        """What one model is doing now; with the requests that no step has seen yet."""
        self.running.labels(model).set(num_running)
        self.waiting.labels(model).set(num_waiting)
        self.kv_usage.labels(model).set(kv_cache_usage)

    # ------------------------------------------------------------ requests

    def of(self, model: str) -> ModelSeries:
        """The request series of one configured model: finding them by label each time would cost more."""
        series = self._series.get(model)
        if series is None:
            series = self._series[model] = ModelSeries(self, model)
        return series

    # ------------------------------------------------------------ the manager's observer

    def on_state(self, model: str, state: str) -> None:
        """See `LifecycleMetrics`; without a worker there is nothing that runs or waits in one."""
        if model not in self._series:
            self.touch(model)  # it came with a reload
        LifecycleMetrics.on_state(self, model, state)
        if str(state) in WITHOUT_WORKER:
            self._totals.pop(model, None)  # the next worker counts from zero
            self.set_load(model, num_running=0, num_waiting=0, kv_cache_usage=0.0)

    def on_step(self, model: str, stats: EngineStats) -> None:
        """A worker has finished one step."""
        self.set_load(
            model,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
        )
        before = self._totals.get(model, EngineStats())
        self._totals[model] = stats
        self.preemptions.labels(model).inc(max(0, stats.num_preemptions - before.num_preemptions))
        self.cache_queries.labels(model).inc(max(0, stats.prefix_cache_queries - before.prefix_cache_queries))
        self.cache_hits.labels(model).inc(max(0, stats.prefix_cache_hits - before.prefix_cache_hits))
        self.draft_tokens.labels(model).inc(max(0, stats.num_draft_tokens - before.num_draft_tokens))
        self.accepted_tokens.labels(model).inc(max(0, stats.num_accepted_tokens - before.num_accepted_tokens))
        if stats.step_num_tokens:
            self.iteration.labels(model).observe(stats.step_num_tokens)
            bucket = next((size for size in BATCH_BUCKETS if stats.step_num_seqs <= size), BATCH_BUCKETS[-1])
            self.inference.labels(model, str(bucket)).observe(stats.step_seconds)


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
