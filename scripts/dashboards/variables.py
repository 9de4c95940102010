"""What every dashboard can be narrowed by, and the selectors that do it."""

from __future__ import annotations

from scripts.dashboards.grafana import Json, datasource_variable, label_variable

SERVER = '{job=~"$job"}'
MODEL = '{job=~"$job", model=~"$model"}'
MODEL_NAME = '{job=~"$job", model_name=~"$model"}'  # vLLM's label for the same
RATE = "[$__rate_interval]"


def narrowed(selector: str, matcher: str) -> str:
    """The selector with one matcher more."""
    return f"{selector[:-1]}, {matcher}}}"


FAILED = narrowed(MODEL, 'outcome="failed"')
ENDED = narrowed(MODEL, 'outcome=~"ok|failed"')  # what availability is reckoned over


def variables() -> list[Json]:
    """Which Prometheus, which scrape job, which models."""
    return [
        datasource_variable(),
        label_variable("job", "Job", "helixflow_build_info"),
        label_variable("model", "Model", f"helixflow_model_state{SERVER}"),
    ]
