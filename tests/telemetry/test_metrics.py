"""Names, labels and counters that dashboards rely on."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from inference_server.telemetry.metrics import Metrics
from inference_server.types import EngineStats, FinishReason

NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:iteration_tokens_total",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:num_preemptions",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:spec_decode_num_draft_tokens",
    "vllm:spec_decode_num_accepted_tokens",
    "api_request_duration_seconds",
    "active_connections",
    "model_inference_seconds",
    "helixflow_model_state",
    "helixflow_model_memory_bytes",
    "helixflow_memory_budget_bytes",
    "helixflow_model_loads",
    "helixflow_model_load_duration_seconds",
    "helixflow_model_evictions",
    "helixflow_requests_rejected",
    "helixflow_requests_cancelled",
]


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_promised_metric_is_on_the_page() -> None:
    page, _ = Metrics(["m"]).render()
    families = {family.name for family in text_string_to_metric_families(page.decode())}
    assert set(NAMES) <= families


def test_a_finished_answer_is_counted() -> None:
    metrics = Metrics(["m"])
    metrics.of("m").answer_finished(FinishReason.STOP, 5, e2e_s=2.0, decode_s=1.0)
    assert sample(metrics, "vllm:request_generation_tokens_sum", model_name="m") == 5
    assert sample(metrics, "vllm:request_success_total", model_name="m", finished_reason="stop") == 1
    assert sample(metrics, "vllm:request_time_per_output_token_seconds_sum", model_name="m") == 0.25


def test_counters_survive_a_new_worker_that_counts_from_zero() -> None:
    metrics = Metrics(["m"])
    metrics.on_step("m", EngineStats(num_preemptions=5, prefix_cache_hits=32))
    metrics.on_state("m", "unloaded")
    metrics.on_step("m", EngineStats(num_preemptions=2, prefix_cache_hits=16))
    assert sample(metrics, "vllm:num_preemptions_total", model_name="m") == 7
    assert sample(metrics, "vllm:prefix_cache_hits_total", model_name="m") == 48


def test_drafts_are_counted_as_guessed_and_as_right() -> None:
    metrics = Metrics(["m"])
    metrics.on_step("m", EngineStats(num_draft_tokens=8, num_accepted_tokens=5))
    metrics.on_step("m", EngineStats(num_draft_tokens=10, num_accepted_tokens=6))
    assert sample(metrics, "vllm:spec_decode_num_draft_tokens_total", model_name="m") == 10
    assert sample(metrics, "vllm:spec_decode_num_accepted_tokens_total", model_name="m") == 6


def test_a_model_that_left_has_no_running_requests() -> None:
    metrics = Metrics(["m"])
    metrics.on_step("m", EngineStats(num_running=3, num_waiting=2, kv_cache_usage=0.5))
    assert sample(metrics, "vllm:num_requests_running", model_name="m") == 3
    metrics.on_state("m", "unloaded")
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert sample(metrics, name, model_name="m") == 0


def test_a_model_is_in_exactly_one_state() -> None:
    metrics = Metrics(["m"])
    metrics.on_state("m", "ready")
    values = [
        sample(metrics, "helixflow_model_state", model="m", state=state)
        for state in ("unloaded", "fetching", "loading", "ready", "draining", "failed")
    ]
    assert values == [0, 0, 0, 1, 0, 0]


def test_batch_sizes_come_in_few_buckets() -> None:
    metrics = Metrics(["m"])
    for size in range(1, 300):
        metrics.on_step("m", EngineStats(step_num_tokens=size, step_num_seqs=size, step_seconds=0.01))
    page, _ = metrics.render()
    labels = {
        s.labels["batch_size"]
        for family in text_string_to_metric_families(page.decode())
        if family.name == "model_inference_seconds"
        for s in family.samples
    }
    assert labels == {"1", "2", "4", "8", "16", "32", "64", "128", "256"}


def test_the_page_has_no_created_series() -> None:
    page, media_type = Metrics(["m"]).render()
    assert b"_created" not in page
    assert media_type.startswith("text/plain")
