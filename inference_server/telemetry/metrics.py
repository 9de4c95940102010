"""Every metric, declared once, in a registry of its own. Names are vLLM's where the thing is the same.

Labels come from the configuration only: a model name that a client made up is never a label. Owner: the
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference_server.telemetry.buckets import (
    HTTP_BUCKETS,
    ITL_BUCKETS,
    LATENCY_BUCKETS,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
)
from inference_server.telemetry.families import Families
from inference_server.telemetry.lifecycle import LifecycleMetrics
from inference_server.telemetry.series import ModelSeries
from inference_server.telemetry.server import ServerMetrics
from inference_server.types import EngineStats

WITHOUT_WORKER = ("unloaded", "failed")  # the states in which no process holds the model
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
            self._families.forget(model)

    def touch(self, model: str) -> None:
        """See `LifecycleMetrics`."""
        LifecycleMetrics.touch(self, model)
        for reason in REASONS:
            self.rejected.labels(model, reason)
        for stage in STAGES:
            self.cancelled.labels(model, stage)
        self.of(model)

    # ------------------------------------------------------------ the moment, at each scrape

    def set_load(self, model: str, *, num_running: int, num_waiting: int, kv_cache_usage: float) -> None:
        """What one model is doing now; with the requests that no step has seen yet."""
        self.of(model).steps.load(num_running, num_waiting, kv_cache_usage)

    # ------------------------------------------------------------ requests

    def of(self, model: str) -> ModelSeries:
        """The series of one configured model."""
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
            self.of(model).steps.worker_gone()

    def on_step(self, model: str, stats: EngineStats) -> None:
        """A worker has finished one step."""
        self.of(model).steps.step(stats)
