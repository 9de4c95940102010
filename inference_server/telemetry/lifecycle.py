"""Metrics of models' lives: states, memory, loads, wakes, evictions, waits for memory. Own names.

What a request does to a model is `metrics.py`, which builds on this. Owner: the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from inference_server.telemetry.buckets import LOAD_BUCKETS
from inference_server.telemetry.families import Families

MODEL_STATES = ("unloaded", "fetching", "loading", "ready", "sleeping", "draining", "failed")
EVICTION_REASONS = ("memory", "idle", "request", "removed")


class LifecycleMetrics:
    """The lifecycle part of the model manager's observer."""

    def __init__(self, families: Families) -> None:
        self._held: set[tuple[str, str, str]] = set()  # the labels of memory that are on the page
        gauge, counter, histogram = families.gauge, families.counter, families.histogram
        self.state = gauge("helixflow_model_state", "1 for the model's state, else 0", "model", "state")
        self.memory = gauge(
            "helixflow_model_memory_bytes", "Bytes reserved, by kind", "model", "device", "kind"
        )
        self.budget = gauge("helixflow_memory_budget_bytes", "The memory budget", "device")
        self.reserved = gauge(
            "helixflow_memory_reserved_bytes", "What models hold or are being loaded into", "device"
        )
        self.estimate_error = gauge(
            "helixflow_memory_estimate_error_ratio",
            "Measured bytes of weights and KV cache at the last load over the planned ones, minus 1",
            "model",
        )
        self.loads = counter("helixflow_model_loads", "Loads by result", "model", "result")
        self.sleeps = counter("helixflow_model_sleeps", "Times put to sleep", "model")
        self.evictions = counter(
            "helixflow_model_evictions", "Times that it left memory, by reason", "model", "reason"
        )
        self.worker_deaths = counter("helixflow_worker_deaths", "Workers that died unasked", "model")
        self.load_duration = histogram(
            "helixflow_model_load_duration_seconds",
            "From the request for a load to its end, by where the weights came from",
            LOAD_BUCKETS,
            "model",
            "source",
        )
        self.wake_duration = histogram(
            "helixflow_model_wake_duration_seconds",
            "From the grant of its bytes until the sleeping model is ready again",
            LOAD_BUCKETS,
            "model",
        )
        self.swap_wait = histogram(
            "helixflow_model_swap_wait_seconds",
            "How long requests waited for a model that was not ready when they came",
            LOAD_BUCKETS,
            "model",
        )

    def touch(self, model: str) -> None:
        """Series exist from the start, so that a rate has a zero to begin with."""
        for result in ("ok", "failed"):
            self.loads.labels(model, result)
        for reason in EVICTION_REASONS:
            self.evictions.labels(model, reason)
        for family in (self.sleeps, self.worker_deaths, self.wake_duration, self.swap_wait):
            family.labels(model)
        LifecycleMetrics.on_state(self, model, "unloaded")

    # ------------------------------------------------------------ the moment, at each scrape

    def set_budget(self, device: str, num_bytes: int, reserved_bytes: int) -> None:
        """The memory budget of one device, and how much of it is reserved."""
        self.budget.labels(device).set(num_bytes)
        self.reserved.labels(device).set(reserved_bytes)

    def set_memory(self, held: Mapping[tuple[str, str, str], int]) -> None:
        """What all models hold, by (model, device, kind); a model may have been on another device before."""
        for labels in self._held - held.keys():
            self.memory.remove(*labels)
        self._held = set(held)
        for labels, num_bytes in held.items():
            self.memory.labels(*labels).set(num_bytes)

    # ------------------------------------------------------------ the manager's observer

    def on_state(self, model: str, state: str) -> None:
        """`model` is now in `state`."""
        for name in MODEL_STATES:
            self.state.labels(model, name).set(1 if name == str(state) else 0)

    def on_load(self, model: str, seconds: float, ok: bool, source: str = "disk") -> None:
        """A load ended; `source` is where its weights came from: disk, hub, or ram if it only had to wake."""
        self.loads.labels(model, "ok" if ok else "failed").inc()
        if ok:
            self.load_duration.labels(model, source).observe(seconds)

    def on_wake(self, model: str, seconds: float) -> None:
        """A sleeping model is ready again. It also counts as a load."""
        self.wake_duration.labels(model).observe(seconds)

    def on_sleep(self, model: str) -> None:
        """`model` sleeps now."""
        self.sleeps.labels(model).inc()

    def on_eviction(self, model: str, reason: str) -> None:
        """`model` is leaving memory because of "memory", "idle", "request" or "removed"."""
        self.evictions.labels(model, reason).inc()

    def on_swap_wait(self, model: str, seconds: float) -> None:
        """A request has got a lease on a model that was not ready when it came."""
        self.swap_wait.labels(model).observe(seconds)

    def on_estimate(self, model: str, error_ratio: float) -> None:
        """A loaded worker has measured its memory; 0.05 is 5 % more than was planned."""
        self.estimate_error.labels(model).set(error_ratio)

    def on_worker_died(self, model: str) -> None:
        """A worker ended without being told to."""
        self.worker_deaths.labels(model).inc()
