"""Where the time of a profile went: names by the time spent in themselves and not in what they call. Pure.

Formats: Chrome's trace events (the "Trace Event Format" that Perfetto reads) and speedscope's
(https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources).
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
_ON_CPU = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_TIMED = frozenset(_ON_CPU | {"kernel", "gpu_memcpy", "gpu_memset"})  # categories of events that take time


@dataclass(frozen=True, slots=True)
class Hotspot:
    """One name: seconds in itself, share of the seconds of all names, and calls or samples."""

    name: str
    self_s: float
    share: float
    count: int


def hotspots(data: bytes) -> list[Hotspot]:
    """All names of a profile's file, the costliest first.

    Raises:
        ValueError: it is neither a Chrome trace nor a speedscope file.
    """
    document = json.loads(gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data)
    if not isinstance(document, dict) or not ("traceEvents" in document or "profiles" in document):
        raise ValueError("it is neither a Chrome trace nor a speedscope file")
    spent = _of_trace(document["traceEvents"]) if "traceEvents" in document else _of_samples(document)
    total_s = sum(self_s for self_s, _ in spent.values()) or 1.0
    found = [Hotspot(name, self_s, self_s / total_s, count) for name, (self_s, count) in spent.items()]
    return sorted(found, key=lambda spot: (-spot.self_s, spot.name))


_Spent = dict[str, tuple[float, int]]  # name → (seconds in itself, count)


def _of_trace(events: Iterable[Mapping[str, Any]]) -> _Spent:
    """Complete events of one thread lie within each other or apart: a stack gives what each spends itself."""
    threads: dict[tuple[object, object], list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in _TIMED:
            threads[event.get("pid"), event.get("tid")].append(event)
    own_us: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for thread in threads.values():
        _add_thread(thread, own_us, counts)
    return {name: (max(0.0, us) / 1e6, counts[name]) for name, us in own_us.items()}


def _add_thread(events: list[Mapping[str, Any]], own_us: dict[str, float], counts: dict[str, int]) -> None:
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    open_events: list[tuple[float, str]] = []  # (end, name), the innermost last
    for event in events:
        start_us, name = float(event["ts"]), str(event["name"])
        while open_events and open_events[-1][0] <= start_us:
            open_events.pop()
        if open_events:
            own_us[open_events[-1][1]] -= event["dur"]
        own_us[name] += event["dur"]
        counts[name] += 1
        open_events.append((start_us + event["dur"], name))


def _of_samples(document: Mapping[str, Any]) -> _Spent:
    """Each sample's weight goes to its innermost frame."""
    frames: Sequence[Mapping[str, Any]] = document["shared"]["frames"]
    own_s: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for profile in document["profiles"]:
        for stack, weight in zip(profile["samples"], profile["weights"], strict=True):
            if stack:
                name = _frame_name(frames[stack[-1]])
                own_s[name] += weight
                counts[name] += 1
    return {name: (seconds, counts[name]) for name, seconds in own_s.items()}


def _frame_name(frame: Mapping[str, Any]) -> str:
    line = f":{frame['line']}" if frame.get("line") else ""
    return f"{frame['name']} ({frame['file']}{line})" if frame.get("file") else str(frame["name"])
