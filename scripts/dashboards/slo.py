"""The dashboard of promises: availability of 99.9 %, its error budget, and how soon answers begin.

It reads the recording rules of helm/helixflow/rules; without them its budget panels are empty.
"""

from __future__ import annotations

from scripts.dashboards.grafana import Json, Panel, Query, Row, dashboard, lines, number, steps
from scripts.dashboards.variables import ENDED, FAILED, MODEL, MODEL_NAME, RATE, SERVER, narrowed, variables

BUDGET = 0.001  # the share of requests that may fail
RATIO = "job:helixflow_request_errors:ratio_rate"
RETENTION = "A Prometheus that keeps less shows what it keeps."
UNCOUNTED = "Requests that reach no server spend none: nobody counts them."
SOON_S = 2.5  # a bound of the histogram
FAULTS = "worker_died|internal_error|model_load_failed|model_loading|insufficient_memory|deadline_exceeded"
AT_FAULT = narrowed(MODEL, f'reason=~"{FAULTS}"')
REFUSED = narrowed(MODEL, 'outcome="refused"')


def slo() -> Json:
    """The whole dashboard."""
    return dashboard(
        "helixflow-slo",
        "HelixFlow / Service level",
        "Availability of 99.9 % over 30 days, and what is left of its error budget.",
        variables(),
        [Row("The promise", _promise()), Row("Error budget", _budget()), Row("Models", _models())],
    )


def _availability(window: str, by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    failed = f"sum{grouping} (rate(helixflow_requests_total{FAILED}{window}))"
    ended = f"sum{grouping} (rate(helixflow_requests_total{ENDED}{window}))"
    return f"1 - {failed} / {ended}"


def _soon(window: str, by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    bucket = narrowed(MODEL_NAME, f'le="{SOON_S}"')
    ttft = "vllm:time_to_first_token_seconds"
    in_time = f"sum{grouping} (rate({ttft}_bucket{bucket}{window}))"
    return f"{in_time} / sum{grouping} (rate({ttft}_count{MODEL_NAME}{window}))"


def _promise() -> list[Panel]:
    budget = f"1 - max({RATIO}30d{SERVER}) / {BUDGET}"
    firing = 'count(ALERTS{alertname=~"HelixFlow.*", alertstate="firing"}) or vector(0)'
    kept = steps((None, "red"), (0.999, "green"))
    return [
        number(
            "Availability",
            "Requests that did not fail, in the time shown.",
            "percentunit",
            _availability("[$__range]"),
            decimals=3,
            thresholds=kept,
        ),
        number(
            "Availability, 30 days",
            f"Worst job. {RETENTION}",
            "percentunit",
            f"1 - max({RATIO}30d{SERVER})",
            decimals=3,
            thresholds=kept,
        ),
        number(
            "Error budget left",
            f"Of 30 days. Below zero: no risky change until it has recovered. {UNCOUNTED}",
            "percentunit",
            budget,
            thresholds=steps((None, "red"), (0, "orange"), (0.25, "green")),
        ),
        number(
            "Failed",
            "Requests in the time shown.",
            "short",
            f"sum(increase(helixflow_requests_total{FAILED}[$__range]))",
        ),
        number(
            f"Begun within {SOON_S:g} s",
            "Share of answers, in the time shown.",
            "percentunit",
            _soon("[$__range]"),
            decimals=2,
        ),
        number("Alerts", "That are firing.", "short", firing, thresholds=steps((None, "green"), (1, "red"))),
    ]


def _budget() -> list[Panel]:
    burn = [
        Query(f"max({RATIO}{window}{SERVER}) / {BUDGET}", window)
        for window in ("5m", "30m", "1h", "6h", "1d", "3d")
    ]
    reasons = f"sum by (reason) (rate(helixflow_requests_rejected_total{AT_FAULT}{RATE}))"
    return [
        lines(
            "Burn rate by window",
            "1 spends the budget in exactly 30 days. 14.4 in 1h and 5m, or 6 in 6h and 30m, wakes somebody.",
            "suffix: ×",
            *burn,
            width=12,
        ),
        lines(
            "Error budget over time",
            f"Of the last 30 days, as it was at each moment. {RETENTION}",
            "percentunit",
            Query(f"1 - max by (job) ({RATIO}30d{SERVER}) / {BUDGET}", "{{job}}"),
            width=12,
        ),
        lines(
            "What the budget went on",
            "Failed requests by reason.",
            "reqps",
            Query(reasons, "{{reason}}"),
            width=12,
            stacked=True,
        ),
        lines(
            "Turned away",
            "Refused, by the caller's own fault or for want of a place. This spends no budget.",
            "reqps",
            Query(
                f"sum by (model) (rate(helixflow_requests_total{REFUSED}{RATE}))",
                "{{model}}",
            ),
            width=12,
            stacked=True,
        ),
    ]


def _models() -> list[Panel]:
    return [
        lines(
            "Availability by model",
            "A gap is a time without requests.",
            "percentunit",
            Query(_availability("[5m]", "model"), "{{model}}"),
            width=12,
        ),
        lines(
            f"Begun within {SOON_S:g} s, by model",
            "Share of answers.",
            "percentunit",
            Query(_soon("[5m]", "model_name"), "{{model_name}}"),
            width=12,
        ),
    ]
