"""What to measure and how to report it, as frozen values. It knows no flags, no server and no file format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """The server to measure. `base_url` None: one of our own, started with `server_flags`, ended afterwards.

    `model` None is the server's first.
    """

    base_url: str | None
    model: str | None = None
    api_key: str | None = None
    server_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What to send. `request_rate` is per second and may be infinite; lengths are in tokens.
    `prefix_len` tokens of system prompt are the same for all requests, the unmeasured first one included.

    `label` begins every prompt. None draws a new one for each run, so that no run finds its prompts in a
    prefix cache; whoever wants the same prompts on several servers gives one. `reuse_connections` False: a
    connection for each request, for servers that close a kept one just when it is used again.
    """

    num_prompts: int
    max_concurrency: int | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    prefix_len: int = 0
    input_len: int = 150
    output_len: int = 64
    ignore_eos: bool = False
    seed: int = 0
    label: str | None = None
    reuse_connections: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What to tell and where. `goals_ms` maps metrics to the limits of a good request."""

    metrics: tuple[str, ...] = METRICS
    goals_ms: Mapping[str, float] = field(default_factory=dict)
    as_json: bool = False
    save_result: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupOptions:
    """How often to start `helixflow serve`, and with which flags. `model` None: as configured."""

    model: str | None
    api_key: str | None
    server_flags: tuple[str, ...]
    cache_dir: Path
    num_cold: int
    num_warm: int


TRACES = ("ping-pong", "burst", "zipf")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapOptions:
    """Equal models, more of them than fit, and what is asked of them.

    With `base_url` None each trial has a server of its own: `num_models` entries on `entry` (keys of a model
    in models.yaml), with a budget that holds `num_resident` of them. Else the models `names` of that server
    are asked, as it is configured. `load` is the arrival rate as a share of what the resident models serve,
    measured with `streams` requests at once. Each seed makes one Zipf trace of `num_prompts` requests.
    """

    base_url: str | None
    names: tuple[str, ...] = ()
    api_key: str | None = None
    entry: Mapping[str, object] = field(default_factory=dict)
    num_models: int = 6
    num_resident: int = 2
    traces: tuple[str, ...] = TRACES
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_prompts: int = 600
    exponent: float = 1.0
    load: float = 0.8
    streams: int = 16
    input_len: int = 50
    output_len: int = 32
    num_rounds: int = 3
