"""The dashboard of requests and tokens: how fast, how many, how full."""

from __future__ import annotations

from scripts.dashboards.grafana import (
    Json,
    Panel,
    Query,
    Row,
    dashboard,
    heat_map,
    lines,
    number,
    percentiles,
    steps,
)
from scripts.dashboards.variables import ENDED, FAILED, MODEL, MODEL_NAME, RATE, SERVER, variables


def serving() -> Json:
    """The whole dashboard."""
    return dashboard(
        "helixflow-serving",
        "HelixFlow / Serving",
        "Latency, throughput, queues and KV caches.",
        variables(),
        [
            Row("Now", _now()),
            Row("Latency", _latency()),
            Row("Load", _load()),
            Row("Engine", _engine()),
            _http(),
        ],
    )


def _rate(metric: str, selector: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{selector}{RATE}))"


def _ratio(part: str, whole: str) -> str:
    return f"{_rate(part, MODEL_NAME, 'model_name')} / {_rate(whole, MODEL_NAME, 'model_name')}"


def _mean(histogram: str) -> str:
    return f"{_rate(histogram + '_sum', MODEL_NAME)} / {_rate(histogram + '_count', MODEL_NAME)}"


def _now() -> list[Panel]:
    ttft = percentiles("vllm:time_to_first_token_seconds", MODEL_NAME, 0.95)[0].expr
    ratio = f"{_rate('helixflow_requests_total', FAILED)} / {_rate('helixflow_requests_total', ENDED)}"
    return [
        number("Requests", "Ended per second, however.", "reqps", _rate("helixflow_requests_total", MODEL)),
        number(
            "Tokens",
            "Given out per second.",
            "suffix: tok/s",
            _rate("vllm:generation_tokens_total", MODEL_NAME),
        ),
        number("First token, p95", "Loads and queues included.", "s", ttft),
        number(
            "Failing",
            "Share of requests that failed and not by their caller's fault.",
            "percentunit",
            ratio,
            thresholds=steps((None, "green"), (0.001, "orange"), (0.05, "red")),
        ),
        number(
            "Running now", "Sequences in batches.", "short", f"sum(vllm:num_requests_running{MODEL_NAME})"
        ),
        number(
            "Waiting now", "For a place or a model.", "short", f"sum(vllm:num_requests_waiting{MODEL_NAME})"
        ),
    ]


def _latency() -> list[Panel]:
    ttft, itl = "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"
    e2e = "vllm:e2e_request_latency_seconds"
    return [
        heat_map("Request latency, spread", "From arrival to the last token.", e2e, MODEL_NAME),
        heat_map(
            "Time to first token, spread",
            "Two bands: models in memory, and models that had to come.",
            ttft,
            MODEL_NAME,
        ),
        lines("Time to first token", "", "s", *percentiles(ttft, MODEL_NAME, 0.5, 0.95, 0.99)),
        lines("Between tokens", "", "s", *percentiles(itl, MODEL_NAME, 0.5, 0.95, 0.99)),
        lines("Whole request", "", "s", *percentiles(e2e, MODEL_NAME, 0.5, 0.95, 0.99)),
        lines(
            "First token by model, p95",
            "A model that stands out waits for memory, or has long prompts.",
            "s",
            *percentiles(ttft, MODEL_NAME, 0.95, by="model_name"),
        ),
        lines(
            "Per token after the first, by model, p95",
            "Of whole requests: what a reader feels.",
            "s",
            *percentiles("vllm:request_time_per_output_token_seconds", MODEL_NAME, 0.95, by="model_name"),
        ),
        lines(
            "Where the time goes",
            "Mean seconds per request, one on the other: the wait for the model, the prompt, the answer.",
            "s",
            Query(_mean("vllm:request_queue_time_seconds"), "model and queue"),
            Query(_mean("vllm:request_prefill_time_seconds"), "prompt"),
            Query(_mean("vllm:request_decode_time_seconds"), "answer"),
            stacked=True,
        ),
    ]


def _load() -> list[Panel]:
    by_outcome = _rate("helixflow_requests_total", MODEL, "outcome")
    lengths = [
        *percentiles("vllm:request_prompt_tokens", MODEL_NAME, 0.5, 0.95),
        *percentiles("vllm:request_generation_tokens", MODEL_NAME, 0.5, 0.95),
    ]
    names = ("prompt p50", "prompt p95", "answer p50", "answer p95")
    named = [Query(query.expr, name) for query, name in zip(lengths, names, strict=True)]
    cancelled = _rate("helixflow_requests_cancelled_total", MODEL, "stage")
    rejected = _rate("helixflow_requests_rejected_total", MODEL, "reason")
    success = _rate("vllm:request_success_total", MODEL_NAME, "finished_reason")
    return [
        lines("Requests by outcome", "", "reqps", Query(by_outcome, "{{outcome}}"), stacked=True),
        lines(
            "Errors by reason",
            "The codes that callers got.",
            "reqps",
            Query(rejected, "{{reason}}"),
            stacked=True,
        ),
        lines("Clients that left, by stage", "", "reqps", Query(cancelled, "{{stage}}"), stacked=True),
        lines(
            "Tokens by model",
            "Given out per second.",
            "suffix: tok/s",
            Query(_rate("vllm:generation_tokens_total", MODEL_NAME, "model_name"), "{{model_name}}"),
            stacked=True,
        ),
        lines(
            "Prompt tokens by model",
            "Taken in per second.",
            "suffix: tok/s",
            Query(_rate("vllm:prompt_tokens_total", MODEL_NAME, "model_name"), "{{model_name}}"),
            stacked=True,
        ),
        lines("Lengths", "Tokens.", "short", *named),
        lines(
            "Running",
            "Sequences in the batch.",
            "short",
            Query(f"sum by (model_name) (vllm:num_requests_running{MODEL_NAME})", "{{model_name}}"),
            stacked=True,
        ),
        lines(
            "Waiting",
            "For a place in the batch or for the model.",
            "short",
            Query(f"sum by (model_name) (vllm:num_requests_waiting{MODEL_NAME})", "{{model_name}}"),
            stacked=True,
        ),
        lines("Answers by how they ended", "", "reqps", Query(success, "{{finished_reason}}"), stacked=True),
    ]


def _engine() -> list[Panel]:
    share: Json = {"max": 1}
    kv = lines(
        "KV cache in use",
        "Near 1, sequences are preempted.",
        "percentunit",
        Query(
            f"max by (instance, model_name) (vllm:kv_cache_usage_perc{MODEL_NAME})",
            "{{model_name}} {{instance}}",
        ),
    )
    kv.defaults.update(share)
    step = f"{_rate('model_inference_seconds_sum', MODEL, 'model, batch_size')}"
    step += f" / {_rate('model_inference_seconds_count', MODEL, 'model, batch_size')}"
    return [
        kv,
        lines(
            "Preemptions",
            "Sequences thrown out for want of KV blocks.",
            "ops",
            Query(_rate("vllm:num_preemptions_total", MODEL_NAME, "model_name"), "{{model_name}}"),
        ),
        lines(
            "Prefix cache",
            "Share of prompt tokens that were found.",
            "percentunit",
            Query(
                _ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"), "{{model_name}}"
            ),
        ),
        lines("Step time by batch size", "Mean.", "s", Query(step, "{{model}} ≤ {{batch_size}}")),
        lines(
            "Tokens per step",
            "Mean: how well batching pays.",
            "short",
            Query(
                _ratio("vllm:iteration_tokens_total_sum", "vllm:iteration_tokens_total_count"),
                "{{model_name}}",
            ),
        ),
        lines(
            "Guesses that were right",
            "Of models with `speculation`. Under a third it does not pay.",
            "percentunit",
            Query(
                _ratio(
                    "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"
                ),
                "{{model_name}}",
            ),
        ),
    ]


def _http() -> Row:
    requests = f"sum by (endpoint, status) (rate(api_request_duration_seconds_count{SERVER}{RATE}))"
    return Row(
        "HTTP",
        [
            lines("Answers by status", "", "reqps", Query(requests, "{{endpoint}} {{status}}")),
            lines(
                "Duration by endpoint, p95",
                "Streams to their end.",
                "s",
                *percentiles("api_request_duration_seconds", SERVER, 0.95, by="endpoint"),
            ),
            lines(
                "In progress",
                "HTTP requests.",
                "short",
                Query(f"sum by (instance) (active_connections{SERVER})", "{{instance}}"),
            ),
            lines(
                "Processor",
                "Cores that the server process uses, without its models. Near 1 it is the bottleneck.",
                "short",
                Query(f"rate(process_cpu_seconds_total{SERVER}{RATE})", "{{instance}}"),
            ),
            lines(
                "Memory of the server process",
                "Without its models.",
                "bytes",
                Query(f"process_resident_memory_bytes{SERVER}", "{{instance}}"),
            ),
            lines(
                "Descriptors",
                "Share of those that may be open.",
                "percentunit",
                Query(f"process_open_fds{SERVER} / process_max_fds{SERVER}", "{{instance}}"),
            ),
        ],
    )
