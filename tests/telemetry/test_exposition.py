"""Our page is the library's, line by line, whatever the values and labels."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest

from inference_server.telemetry.families import Families
from inference_server.telemetry.metrics import Metrics
from inference_server.types import EngineStats

LABELS = st.text(min_size=1, max_size=8)
VALUES = st.floats(width=32).map(lambda value: value + 0.0)  # a zero without a sign
AMOUNTS = st.floats(min_value=0, allow_nan=False, width=32)


def lines(page: bytes) -> list[str]:
    """Without what changes while one looks, and without the twins that nobody reads."""
    found = page.decode().split("\n")
    return sorted(line for line in found if "_created" not in line and "process_" not in line)


@given(
    gauges=st.dictionaries(LABELS, VALUES, max_size=3),
    counts=st.lists(AMOUNTS, max_size=3),
    seen=st.dictionaries(st.tuples(LABELS, LABELS), st.lists(VALUES, max_size=4), max_size=3),
)
def test_every_line_is_as_the_library_writes_it(
    gauges: dict[str, float], counts: list[float], seen: dict[tuple[str, str], list[float]]
) -> None:
    families = Families()
    gauge = families.gauge("g", 'A "gauge"\nof \\ two lines', "z")
    counter = families.counter("c", "Without labels")
    histogram = families.histogram("h_seconds", "With two", (0.005, 1, 2.5, 1e6), "model", "batch_size")
    for label, value in gauges.items():
        gauge.labels(label).set(value)
    for amount in counts:
        counter.inc(amount)
    for labels, values in seen.items():
        for value in values:
            histogram.labels(*labels).observe(value)
    for _ in range(2):  # the second time from what is kept
        page, _ = families.render()
        assert lines(page) == lines(generate_latest(families.registry))


def test_the_servers_own_page_is_the_librarys() -> None:
    metrics = Metrics(["a", "org/b"])
    metrics.on_load("a", 1.5, True, "hub")
    metrics.on_step("a", EngineStats(num_running=3, step_num_tokens=7, step_num_seqs=2, step_seconds=0.01))
    assert lines(metrics.render()[0]) == lines(generate_latest(metrics.registry))


def test_of_a_model_that_is_gone_nothing_is_kept() -> None:
    metrics = Metrics(["stays", "goes"])
    before = len(metrics.render()[0])
    metrics.sync_models(["stays"])
    metrics.render()
    gc.collect()
    kept = sum(len(text._beginnings) for text in metrics._families._texts)
    metrics.sync_models(["stays", "goes"])
    assert abs(len(metrics.render()[0]) - before) < 100  # but for the process's own figures
    again = sum(len(text._beginnings) for text in metrics._families._texts)
    assert again > kept > again // 2
