"""The dashboard of models' lives: who is in memory, who had to go, and what that cost."""

from __future__ import annotations

from scripts.dashboards.grafana import Json, Panel, Query, Row, dashboard, lines, number, percentiles
from scripts.dashboards.variables import MODEL, RATE, SERVER, narrowed, variables

FAILED_LOAD = narrowed(MODEL, 'result="failed"')
# Unloaded is 0: a model that is in none of these.
STATES = (
    ("fetching", "purple"),
    ("loading", "yellow"),
    ("ready", "green"),
    ("sleeping", "blue"),
    ("draining", "orange"),
    ("failed", "red"),
)


def models() -> Json:
    """The whole dashboard."""
    return dashboard(
        "helixflow-models",
        "HelixFlow / Models",
        "Residency, loads, evictions and memory.",
        variables(),
        [
            Row("Now", _now()),
            Row("Residency", _residency()),
            Row("Loads", _loads()),
            Row("Departures", _departures()),
        ],
    )


def _of(state: str) -> str:
    return narrowed(MODEL, f'state="{state}"')


def _now() -> list[Panel]:
    budget = f"sum(helixflow_memory_reserved_bytes{SERVER}) / sum(helixflow_memory_budget_bytes{SERVER})"
    return [
        number(
            "In memory", "Models, over all replicas.", "short", f"sum(helixflow_model_state{_of('ready')})"
        ),
        number("Asleep", "A wake away.", "short", f"sum(helixflow_model_state{_of('sleeping')})"),
        number(
            "Failed", "Their last load went wrong.", "short", f"sum(helixflow_model_state{_of('failed')})"
        ),
        number("Budget in use", "Share of all devices' budgets that is reserved.", "percentunit", budget),
        number(
            "Loads that failed",
            "In the time shown.",
            "short",
            f"sum(increase(helixflow_model_loads_total{FAILED_LOAD}[$__range]))",
        ),
        number(
            "Dead workers",
            "In the time shown.",
            "short",
            f"sum(increase(helixflow_worker_deaths_total{MODEL}[$__range]))",
        ),
    ]


def _residency() -> list[Panel]:
    memory = f"sum by (model) (helixflow_model_memory_bytes{MODEL})"
    return [
        _timeline(),
        lines(
            "Bytes against the budget",
            "Models one on the other; the line above is what they may hold.",
            "bytes",
            Query(memory, "{{model}}"),
            Query(f"sum(helixflow_memory_budget_bytes{SERVER})", "budget"),
            width=12,
            stacked=True,
            limit="budget",
        ),
        lines(
            "Reserved and budget by device",
            "Reservations of loads under way included.",
            "bytes",
            Query(
                f"sum by (instance, device) (helixflow_memory_reserved_bytes{SERVER})",
                "{{instance}} {{device}}",
            ),
            Query(
                f"sum by (instance, device) (helixflow_memory_budget_bytes{SERVER})",
                "{{instance}} {{device}} budget",
            ),
            width=12,
        ),
        lines(
            "Bytes by kind",
            "",
            "bytes",
            Query(f"sum by (kind) (helixflow_model_memory_bytes{MODEL})", "{{kind}}"),
            width=12,
            stacked=True,
        ),
        lines(
            "Plans against measurements",
            "Measured over planned bytes at the last load, minus 1.",
            "percentunit",
            Query(f"max by (model) (helixflow_memory_estimate_error_ratio{MODEL})", "{{model}}"),
            width=12,
        ),
    ]


def _timeline() -> Panel:
    """Each model's state on each replica. One series of a model is 1, so that their sum is its number."""
    states = " or ".join(
        f"helixflow_model_state{_of(state)} * {number}" for number, (state, _) in enumerate(STATES, start=1)
    )
    shown = {"0": {"text": "unloaded", "color": "text", "index": 0}}
    for number_, (state, color) in enumerate(STATES, start=1):
        shown[str(number_)] = {"text": state, "color": color, "index": number_}
    return Panel(
        "Who is in memory",
        "Each model on each replica. Stripes of yellow and green: models push each other out.",
        "state-timeline",
        "none",
        [Query(f"sum by (instance, model) ({states})", "{{model}} {{instance}}")],
        24,
        10,
        {"mergeValues": True, "showValue": "never", "legend": {"displayMode": "list", "placement": "bottom"}},
        {"mappings": [{"type": "value", "options": shown}]},
    )


def _loads() -> list[Panel]:
    duration, wake = "helixflow_model_load_duration_seconds", "helixflow_model_wake_duration_seconds"
    wait = "helixflow_model_swap_wait_seconds"
    busy = f"sum by (instance) (rate({duration}_sum{MODEL}{RATE}))"
    return [
        lines(
            "Loads",
            "Per second; wakes included.",
            "ops",
            Query(f"sum by (result) (rate(helixflow_model_loads_total{MODEL}{RATE}))", "{{result}}"),
            stacked=True,
        ),
        lines(
            "Load time by source, p95",
            "`ram` is a wake, `hub` a download first.",
            "s",
            *percentiles(duration, MODEL, 0.95, by="source"),
        ),
        lines("Load time by model, p95", "", "s", *percentiles(duration, MODEL, 0.95, by="model")),
        lines(
            "Waits for a model",
            "Of requests that came while it was not ready.",
            "s",
            *percentiles(wait, MODEL, 0.5, 0.95),
        ),
        lines("Waits by model, p95", "", "s", *percentiles(wait, MODEL, 0.95, by="model")),
        lines(
            "Wakes, p95", "From the grant of the memory.", "s", *percentiles(wake, MODEL, 0.95, by="model")
        ),
        lines(
            "Time spent loading",
            "Seconds of loading per second. Above a quarter there are too many models for the memory.",
            "percentunit",
            Query(busy, "{{instance}}"),
        ),
        lines(
            "Failed loads",
            "Per second.",
            "ops",
            Query(f"sum by (model) (rate(helixflow_model_loads_total{FAILED_LOAD}{RATE}))", "{{model}}"),
        ),
        lines(
            "Workers that died",
            "Per second.",
            "ops",
            Query(f"sum by (model) (rate(helixflow_worker_deaths_total{MODEL}{RATE}))", "{{model}}"),
        ),
    ]


def _departures() -> list[Panel]:
    evictions = f"rate(helixflow_model_evictions_total{MODEL}{RATE})"
    return [
        lines(
            "Departures by reason",
            "`memory`: another model needed it.",
            "ops",
            Query(f"sum by (reason) ({evictions})", "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Departures by model",
            "",
            "ops",
            Query(f"sum by (model) ({evictions})", "{{model}}"),
            stacked=True,
        ),
        lines(
            "Put to sleep",
            "",
            "ops",
            Query(f"sum by (model) (rate(helixflow_model_sleeps_total{MODEL}{RATE}))", "{{model}}"),
            stacked=True,
        ),
    ]
