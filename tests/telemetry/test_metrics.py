"""Names, labels and counters that dashboards rely on."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from inference_server.api.errors import STATUS
from inference_server.telemetry.metrics import REASONS, Metrics
from inference_server.telemetry.outcomes import Outcome
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
    "helixflow_model_wake_duration_seconds",
    "helixflow_model_sleeps",
    "helixflow_model_swap_wait_seconds",
    "helixflow_memory_estimate_error_ratio",
    "helixflow_worker_deaths",
    "helixflow_requests",
    "helixflow_requests_rejected",
    "helixflow_requests_cancelled",
    "helixflow_memory_reserved_bytes",
    "helixflow_draining",
    "helixflow_shutdown_left_seconds",
    "helixflow_build_info",
    "process_resident_memory_bytes",
    "process_cpu_seconds",
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


def test_loads_are_told_apart_by_where_the_weights_came_from() -> None:
    metrics = Metrics(["m"])
    metrics.on_load("m", 2.0, True, "hub")
    metrics.on_load("m", 9.0, False, "hub")
    metrics.on_load("m", 0.25, True, "ram")
    metrics.on_wake("m", 0.125)
    duration = "helixflow_model_load_duration_seconds_sum"
    assert sample(metrics, duration, model="m", source="hub") == 2.0
    assert sample(metrics, duration, model="m", source="ram") == 0.25
    assert sample(metrics, "helixflow_model_wake_duration_seconds_sum", model="m") == 0.125
    assert sample(metrics, "helixflow_model_loads_total", model="m", result="ok") == 2
    assert sample(metrics, "helixflow_model_loads_total", model="m", result="failed") == 1


def test_waits_and_estimates_are_told_per_model() -> None:
    metrics = Metrics(["m"])
    metrics.on_swap_wait("m", 1.5)
    metrics.on_estimate("m", -0.02)
    assert sample(metrics, "helixflow_model_swap_wait_seconds_sum", model="m") == 1.5
    assert sample(metrics, "helixflow_memory_estimate_error_ratio", model="m") == -0.02


def test_counters_of_a_model_begin_at_zero() -> None:
    metrics = Metrics(["m"])
    for reason in ("memory", "idle", "request", "removed"):
        assert sample(metrics, "helixflow_model_evictions_total", model="m", reason=reason) == 0
    assert sample(metrics, "helixflow_model_loads_total", model="m", result="failed") == 0


def test_every_request_ends_in_one_of_four_ways_and_their_counts_begin_at_zero() -> None:
    metrics = Metrics(["m"])
    metrics.of("m").ended(Outcome.FAILED)
    counts = {
        outcome.value: sample(metrics, "helixflow_requests_total", model="m", outcome=outcome.value)
        for outcome in Outcome
    }
    assert counts == {"ok": 0, "refused": 0, "failed": 1, "cancelled": 0}


def test_reasons_that_wake_an_operator_are_codes_of_errors_and_begin_at_zero() -> None:
    codes = {error.code for error in STATUS}
    metrics = Metrics(["m"])
    for reason in REASONS:
        assert reason in codes
        assert sample(metrics, "helixflow_requests_rejected_total", model="m", reason=reason) == 0


def test_a_removed_model_vanishes_from_every_family_and_a_new_one_appears() -> None:
    metrics = Metrics(["old", "stays"])
    metrics.on_step("old", EngineStats(num_running=1, step_num_tokens=4, step_num_seqs=1, num_preemptions=2))
    metrics.on_load("old", 1.0, True)
    metrics.set_memory({("old", "cpu", "weights"): 5})
    metrics.rejected.labels("old", "queue_full").inc()
    metrics.sync_models(["stays", "new"])
    page, _ = metrics.render()
    assert b'"old"' not in page
    assert sample(metrics, "helixflow_model_state", model="new", state="unloaded") == 1
    assert sample(metrics, "helixflow_model_state", model="stays", state="unloaded") == 1


def test_a_model_that_came_with_a_reload_keeps_the_state_it_reached_before_the_scrape() -> None:
    metrics = Metrics(["m"])
    metrics.on_state("new", "ready")
    metrics.sync_models(["m", "new"])
    assert sample(metrics, "helixflow_model_state", model="new", state="ready") == 1


def test_a_model_that_comes_back_counts_from_zero() -> None:
    metrics = Metrics(["m"])
    metrics.on_load("m", 1.0, True)
    metrics.sync_models([])
    metrics.sync_models(["m"])
    metrics.of("m").answer_finished(FinishReason.STOP, 5, e2e_s=2.0, decode_s=1.0)
    assert sample(metrics, "helixflow_model_loads_total", model="m", result="ok") == 0
    assert sample(metrics, "vllm:request_success_total", model_name="m", finished_reason="stop") == 1


def test_memory_follows_a_model_to_another_device() -> None:
    metrics = Metrics(["m"])
    metrics.set_memory({("m", "cpu", "weights"): 5, ("m", "cpu", "kv"): 2})
    metrics.set_memory({("m", "cuda:0", "weights"): 5})
    memory = "helixflow_model_memory_bytes"
    assert sample(metrics, memory, model="m", device="cuda:0", kind="weights") == 5
    assert sample(metrics, memory, model="m", device="cpu", kind="weights") is None
