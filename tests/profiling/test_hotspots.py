"""Where a profile's time went."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.profiling.hotspots import Hotspot, hotspots

Event = dict[str, Any]


def event(name: str, start_us: float, duration_us: float, tid: int = 1, cat: str = "cpu_op") -> Event:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start_us, "dur": duration_us}


def trace(*events: Event) -> bytes:
    return gzip.compress(json.dumps({"traceEvents": list(events)}).encode())


def test_time_goes_to_the_innermost_event_of_its_thread() -> None:
    found = hotspots(
        trace(
            event("step", 0, 10_000, cat="user_annotation"),
            event("linear", 1_000, 6_000),
            event("addmm", 2_000, 4_000),
            event("addmm", 8_000, 1_000),
            event("kernel", 0, 9_000, tid=7, cat="kernel"),
            event("PyTorch Profiler (0)", 0, 99_000, cat="Trace"),
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
        )
    )
    assert [(spot.name, round(spot.self_s * 1e3, 6), spot.count) for spot in found] == [
        ("kernel", 9, 1),
        ("addmm", 5, 2),
        ("step", 3, 1),
        ("linear", 2, 1),
    ]
    assert sum(spot.share for spot in found) == pytest.approx(1)


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_nested_events_come_to_the_time_of_the_outermost(tree: list[Any]) -> None:
    events: list[dict[str, Any]] = []

    def add(node: list[Any], start_us: float, duration_us: float) -> None:
        events.append(event(f"depth {len(events) % 3}", start_us, duration_us))
        part_us = duration_us / (len(node) + 1)
        for index, child in enumerate(node):
            add(child, start_us + index * part_us, part_us)

    add(tree, 5.0, 4096.0)
    assert sum(spot.self_s for spot in hotspots(trace(*events))) == pytest.approx(4096e-6)


def test_samples_count_for_the_frame_that_they_were_taken_in() -> None:
    document = {
        "shared": {"frames": [{"name": "main", "file": "a.py", "line": 3}, {"name": "wait"}]},
        "profiles": [{"samples": [[0], [0, 1], [], [0, 1]], "weights": [0.01, 0.02, 5.0, 0.02]}],
    }
    main, wait = 0.01 / 0.05, 0.04 / 0.05
    assert hotspots(json.dumps(document).encode()) == [
        Hotspot("wait", pytest.approx(0.04), pytest.approx(wait), 2),
        Hotspot("main (a.py:3)", pytest.approx(0.01), pytest.approx(main), 1),
    ]


def test_an_empty_profile_has_none_and_another_file_is_refused() -> None:
    assert hotspots(trace()) == []
    for data in (b'{"model": 1}', b"[]", b"not json"):
        with pytest.raises(ValueError):
            hotspots(data)
