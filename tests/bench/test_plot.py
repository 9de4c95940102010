"""Charts and the pages made of them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from inference_server.bench.charts import Series, chart, tick_step
from inference_server.bench.client import RequestRecord
from inference_server.bench.plot import levels_page, load_page, startup_page

VALUES = st.floats(0, 1e9, allow_subnormal=False).map(lambda value: value if value > 1e-9 else 0.0)


def figures(page: str) -> list[ET.Element]:
    """The figures of a page, which must be well-formed."""
    return [ET.fromstring(text) for text in re.findall(r"<figure>.*?</figure>", page, re.DOTALL)]


@given(st.lists(st.tuples(VALUES, VALUES), max_size=30))
def test_every_point_lies_within_the_chart(points: list[tuple[float, float]]) -> None:
    (figure,) = figures(chart("t", "x", "y", [Series("s", points), Series("empty", [])]))
    circles = list(figure.iter("circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 560
        assert 0 <= float(circle.attrib["cy"]) <= 300


@given(st.floats(1e-6, 1e12))
def test_ticks_are_round_and_few(top: float) -> None:
    step = tick_step(top)
    assert 2 <= top / step <= 6.001
    assert f"{step:e}"[0] in "125"


def test_names_cannot_break_out_of_the_page() -> None:
    records = [RequestRecord(latency_s=1.0, ttft_s=0.5, gaps_s=(0.1,), num_output_tokens=2)]
    page = load_page({"model": "<script>", "base_url": "&", "note": '"<b>'}, records)
    assert "<script" not in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_load_shows_its_requests_and_leaves_failures_out() -> None:
    good = RequestRecord(latency_s=1.0, start_s=5.0, ttft_s=0.5, gaps_s=(0.1, 0.2), num_output_tokens=3)
    late = RequestRecord(latency_s=2.0, start_s=6.0, ttft_s=0.25, gaps_s=(0.1,), num_output_tokens=2)
    bad = RequestRecord(latency_s=0.1, start_s=0.0, error="no")
    ttft, tpot, over_time, rate = figures(load_page({"model": "m", "base_url": "u"}, [good, late, bad]))
    hints = [title.text for title in ttft.iter("title")]
    assert hints == ["TTFT: 250, 50", "TTFT: 500, 100"]
    assert len(list(tpot.iter("circle"))) == 2
    assert [title.text for title in over_time.iter("title")] == ["TTFT: 0, 500", "TTFT: 1, 250"]
    assert len(list(rate.iter("polyline"))) == 1


def test_a_load_in_which_everything_failed_still_gives_a_page() -> None:
    page = load_page({"model": "m", "base_url": "u"}, [RequestRecord(latency_s=1.0, error="no")])
    assert page.count("no values") == 4


def test_levels_and_starts_are_drawn_in_order() -> None:
    levels = [
        {"max_concurrency": streams, "output_throughput": 10.0 * streams, "p50_ttft_ms": None}
        for streams in (1, 4)
    ]
    throughput, ttft, _ = figures(levels_page({"model": "m", "base_url": "u"}, levels))
    assert [title.text for title in throughput.iter("title")] == ["output: 1, 10", "output: 4, 40"]
    assert list(ttft.iter("circle")) == []
    start = {"live_s": 0.5, "ready_s": 1.0, "first_answer_s": 1.5}
    cold, warm = figures(startup_page({"model": "m", "cold": [], "warm": [start, start]}))
    assert "no values" in "".join(cold.itertext())
    assert len(list(warm.iter("circle"))) == 6
