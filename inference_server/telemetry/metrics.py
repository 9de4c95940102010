"""Every metric, declared once, in a registry of its own. Names are vLLM's where the thing is the same.

Labels come from the configuration only: a model name that a client made up is never a label. Owner: the
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from inference_server.types import EngineStats, FinishReason

TTFT_BUCKETS = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
ITL_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5)  # fmt: skip
LATENCY_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)  # fmt: skip
HTTP_BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # fmt: skip
TOKEN_BUCKETS = tuple(float(1 << power) for power in range(16))
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENDINGS = (FinishReason.STOP, FinishReason.LENGTH)
MODEL_STATES = ("unloaded", "fetching", "loading", "ready", "sleeping", "draining", "failed")


class Metrics:
    """All metrics of one server. It also is the model manager's observer."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._totals: dict[str, EngineStats] = {}  # last seen counters per model, of the current worker
        self._series: dict[str, ModelSeries] = {}
        self._declare_serving()
        self._declare_http()
        self._declare_lifecycle()
        for model in models:
            self._touch(model)

    def render(self) -> tuple[bytes, str]:
        """The page of a scrape and its content type."""
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_LATEST

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
        self.inference = Histogram(
            "model_inference_seconds",
            "Time of one step",
            ["model", "batch_size"],
            buckets=HTTP_BUCKETS,
            registry=self.registry,
        )

    def _declare_http(self) -> None:
        self.http_duration = Histogram(
            "api_request_duration_seconds",
            "HTTP request duration",
            ["method", "endpoint", "status"],
            buckets=HTTP_BUCKETS,
            registry=self.registry,
        )
        self.connections = Gauge("active_connections", "HTTP requests in progress", registry=self.registry)

    def _declare_lifecycle(self) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self.state = gauge("helixflow_model_state", "1 for the state that the model is in", "model", "state")
        self.memory = gauge(
            "helixflow_model_memory_bytes", "Bytes reserved by kind", "model", "device", "kind"
        )
        self.budget = gauge("helixflow_memory_budget_bytes", "The memory budget", "device")
        self.loads = counter("helixflow_model_loads", "Loads by result", "model", "result")
        self.load_duration = Histogram(
            "helixflow_model_load_duration_seconds",
            "From the request for a load to its end",
            ["model"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.evictions = counter("helixflow_model_evictions", "Evictions", "model", "reason")
        self.worker_deaths = counter("helixflow_worker_deaths", "Workers that died unasked", "model")
        self.rejected = counter("helixflow_requests_rejected", "Requests refused", "model", "reason")
        self.cancelled = counter(
            "helixflow_requests_cancelled", "Requests whose client left", "model", "stage"
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["model_name"], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self.registry)

    def _touch(self, model: str) -> None:
        """Series exist from the start, so that a rate has a zero to begin with."""
        for gauge in (self.running, self.waiting, self.kv_usage):
            gauge.labels(model)
        self.of(model)
        self.on_state(model, "unloaded")

    # ------------------------------------------------------------ the moment, at each scrape

    def set_load(self, model: str, *, num_running: int, num_waiting: int, kv_cache_usage: float) -> None:
        """What one model is doing now; with the requests that no step has seen yet."""
        self.running.labels(model).set(num_running)
        self.waiting.labels(model).set(num_waiting)
        self.kv_usage.labels(model).set(kv_cache_usage)

    def set_budget(self, device: str, num_bytes: int) -> None:
        """The memory budget of one device."""
        self.budget.labels(device).set(num_bytes)

    def set_model_memory(self, model: str, device: str, **bytes_by_kind: int) -> None:
        """What one model holds: `weights`, `kv`, `workspace`."""
        for kind, num_bytes in bytes_by_kind.items():
            self.memory.labels(model, device, kind).set(num_bytes)

    # ------------------------------------------------------------ requests

    def of(self, model: str) -> ModelSeries:
        """The request series of one configured model: finding them by label each time would cost more."""
        series = self._series.get(model)
        if series is None:
            series = self._series[model] = ModelSeries(self, model)
        return series

    # ------------------------------------------------------------ the manager's observer

    def on_state(self, model: str, state: str) -> None:
        """`model` is now in `state`."""
        for name in MODEL_STATES:
            self.state.labels(model, name).set(1 if name == str(state) else 0)
        if str(state) in ("unloaded", "failed"):
            self._totals.pop(model, None)  # the next worker counts from zero
            self.set_load(model, num_running=0, num_waiting=0, kv_cache_usage=0.0)

    def on_load(self, model: str, seconds: float, ok: bool) -> None:
        """A load ended."""
        self.loads.labels(model, "ok" if ok else "failed").inc()
        if ok:
            self.load_duration.labels(model).observe(seconds)

    def on_eviction(self, model: str, reason: str) -> None:
        """`model` is being evicted."""
        self.evictions.labels(model, reason).inc()

    def on_worker_died(self, model: str) -> None:
        """A worker ended without being told to."""
        self.worker_deaths.labels(model).inc()

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
        self._success = {reason: metrics.success.labels(model, reason.value) for reason in ENDINGS}
        self._e2e = metrics.e2e.labels(model)
        self._decode_time = metrics.decode_time.labels(model)
        self._tpot = metrics.tpot.labels(model)

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


class _WithoutCreated:
    """A registry without the `_created` twin of every series, which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
