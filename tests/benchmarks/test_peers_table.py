"""The side-by-side table: medians, ratios, and what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.rounds import Run
from benchmarks.peers.servers import Server
from benchmarks.peers.table import markdown, ratios, rows_of

LEVELS = (1, 16)


def server(key: str, *, is_ours: bool = False) -> Server:
    """A row that nobody starts."""
    return Server(key, key.upper(), "bf16", lambda workshop: pytest.fail("started"), is_ours=is_ours)


OURS, ONE, TWO = server("ours", is_ours=True), server("one"), server("two")


def run(key: str, number: int, throughput: dict[int, float], ready_s: float = 1.0) -> Run:
    """A run with these throughputs; other figures follow from them."""
    levels = {
        level: {
            "output_throughput": value,
            "median_ttft_ms": 1000 / value,
            "median_tpot_ms": None,
            "failed": 0,
        }
        for level, value in throughput.items()
    }
    return Run(key=key, round=number, first_answer_s=ready_s, levels=levels)


RUNS = [
    run("ours", 1, {1: 100.0, 16: 400.0}, ready_s=6.0),
    run("one", 1, {1: 50.0, 16: 100.0}, ready_s=2.0),
    run("two", 1, {1: 20.0, 16: 200.0}, ready_s=30.0),
    run("ours", 2, {1: 120.0, 16: 400.0}, ready_s=6.0),
    run("one", 2, {1: 50.0, 16: 100.0}, ready_s=2.0),
    Run(key="two", round=2, error="it died"),
    run("ours", 3, {1: 900.0, 16: 400.0}, ready_s=6.0),
]


def test_figures_are_medians_over_rounds_and_ratios_are_to_the_best_peer_of_each_level() -> None:
    ours, one, two = rows_of([OURS, ONE, TWO], RUNS, LEVELS)
    assert ours.metrics["throughput"] == {1: 120.0, 16: 400.0}
    assert two.metrics["throughput"] == {1: 20.0, 16: 200.0}
    found = ratios(ours, [one, two], LEVELS)
    assert found["throughput"] == {1: pytest.approx(2.4), 16: 2.0}
    assert found["ttft"] == {1: pytest.approx(50 / 120), 16: 0.5}
    assert found["tpot"] == {}


def test_the_table_has_a_row_for_each_server_and_for_each_ratio() -> None:
    lines = markdown(rows_of([OURS, ONE, TWO], RUNS, LEVELS), LEVELS).splitlines()
    assert lines[0].startswith("| server | weights | output tok/s at 1 / 16 |")
    assert {line.count("|") for line in lines} == {7}
    assert "| OURS | bf16 | 120.0 / 400.0 |" in lines[2]
    assert lines[3].endswith("| – / – | 2.0 |")
    assert [line.split("|")[1].strip() for line in lines[5:]] == [
        "**OURS ÷ best peer**",
        "OURS ÷ ONE",
        "OURS ÷ TWO",
    ]
    assert lines[5].split("|")[3].strip() == "2.40 / 2.00"
    assert lines[5].endswith("| 3.00 |")


def test_what_was_not_measured_is_a_dash_and_gives_no_ratio() -> None:
    runs = [run("ours", 1, {1: 10.0}), Run(key="one", round=1, error="no")]
    rows = rows_of([OURS, ONE], runs, LEVELS)
    lines = markdown(rows, LEVELS).splitlines()
    assert "10.0 / –" in lines[2]
    assert lines[3] == "| ONE | bf16 | – / – | – / – | – / – | – |"
    assert lines[4] == "| OURS ÷ ONE |  | – / – | – / – | – / – | – |"


def test_without_peers_there_are_no_ratios() -> None:
    assert "÷" not in markdown(rows_of([OURS], RUNS, LEVELS), LEVELS)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=5), st.floats(0.1, 1e4))
def test_a_ratio_above_one_means_more_than_every_peer(peers: list[float], ours: float) -> None:
    servers = [server(f"p{index}") for index in range(len(peers))]
    runs = [run("ours", 1, {1: ours}), *(run(s.key, 1, {1: v}) for s, v in zip(servers, peers, strict=True))]
    row, *others = rows_of([OURS, *servers], runs, (1,))
    assert (ratios(row, others, (1,))["throughput"][1] > 1) == all(ours > value for value in peers)
    assert (ratios(row, others, (1,))["ttft"][1] < 1) == all(1000 / ours < 1000 / value for value in peers)


def test_a_run_is_good_only_if_every_request_was_answered() -> None:
    good = run("ours", 1, {1: 10.0})
    assert good.is_good
    good.levels[1]["failed"] = 1
    assert not good.is_good
    assert not Run(key="one", round=1, error="no").is_good
