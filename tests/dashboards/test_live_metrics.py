"""The metrics of a live server after a short load: all there, as documented, in good form, and bounded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.load import MODELS
from tests.fetched_tools import promtool
from tests.server.running import RunningServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(?P<name>[\w:]+)` \| (?P<kind>\w+) \| (?P<labels>[\w, ]*) ?\| (?P<unit>[^|]+) \|")
# A scripted model has no plan in bytes that a measurement could differ from.
WITHOUT_SAMPLES = {"helixflow_memory_estimate_error_ratio"}


@dataclass(frozen=True)
class Documented:
    """A row of the document."""

    kind: str
    labels: frozenset[str]


def documented() -> dict[str, Documented]:
    rows = [match for line in DOCUMENT.read_text("utf-8").splitlines() if (match := ROW.match(line))]
    return {
        row["name"]: Documented(row["kind"], frozenset(re.findall(r"\w+", row["labels"]))) for row in rows
    }


def on_page(page: str) -> dict[str, Metric]:
    """Families by the name that the document uses."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(page)
    }


def label_names(family: Metric) -> frozenset[str]:
    return frozenset(label for sample in family.samples for label in sample.labels) - {"le"}


def series(page: str) -> set[str]:
    """Every series with its labels, without its value."""
    return {line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")}


def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is(page: str) -> None:
    found = {
        name: Documented(family.type, label_names(family))
        for name, family in on_page(page).items()
        if name not in WITHOUT_SAMPLES
    }
    assert found == {name: row for name, row in documented().items() if name not in WITHOUT_SAMPLES}
    assert documented().keys() >= WITHOUT_SAMPLES


def test_the_load_has_left_its_traces(server: RunningServer, page: str) -> None:
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return values[name, tuple(sorted(labels.items()))]

    assert value("helixflow_requests_total", model="broken", outcome="failed") == 1
    assert value("helixflow_requests_total", model="one", outcome="failed") == 2  # one in mid-stream
    assert value("helixflow_requests_total", model="one", outcome="refused") == 1
    assert value("helixflow_requests_total", model="one", outcome="cancelled") == 1
    assert value("helixflow_requests_total", model="two", outcome="ok") == 2
    assert value("helixflow_model_evictions_total", model="one", reason="memory") >= 1
    assert value("helixflow_model_loads_total", model="broken", result="failed") == 1
    assert value("helixflow_model_wake_duration_seconds_count", model="one") == 1
    assert value("helixflow_memory_reserved_bytes", device="cpu") > 0
    assert value("vllm:time_to_first_token_seconds_count", model_name="two") == 2
    assert value("helixflow_draining") == 0
    assert value("process_resident_memory_bytes") > 10e6


def test_promtool_finds_nothing_but_what_vllms_names_bring_with_them(page: str) -> None:
    complaints = set(promtool("check", "metrics", given=page).stderr.splitlines()) - {""}
    colons = {line for line in complaints if line.endswith(" metric names should not contain ':'")}
    assert all(line.startswith("vllm:") for line in colons)
    assert complaints - colons == {
        'vllm:iteration_tokens_total non-counter metrics should not have "_total" suffix'
    }


@pytest.mark.parametrize("path", ["/metrics", "/metrics/epp"])
def test_a_scrape_needs_no_key(server: RunningServer, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 200


def test_whatever_clients_make_up_the_series_are_bounded(server: RunningServer) -> None:
    def make_up(number: int) -> None:
        client, name = server.client, f"made-up-{number}"
        client.post("/v1/chat/completions", json={"model": name, "messages": []})
        client.post("/v1/embeddings", json={"model": name, "input": "x"})
        client.get(f"/v1/models/{name}")
        client.get(f"/{name}/{name}?{name}={name}")
        client.request(f"MADE{number}", "/v1/models")
        client.get("/health", headers={"x-request-id": name})

    for number in range(3):
        make_up(number)
    before = series(server.client.get("/metrics").text)
    for number in range(3, 100):
        make_up(number)
    page = server.client.get("/metrics").text
    assert series(page) == before
    assert "made" not in page.lower()
    models = {
        sample.labels[label]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        for label in ("model", "model_name")
        if label in sample.labels
    }
    assert models == set(MODELS)
