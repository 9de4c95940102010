"""The page that an endpoint picker (Kubernetes Gateway API Inference Extension) scrapes every 50 ms.

Four process-wide series under vLLM's names. Models that are held or on their way stand as running adapters,
so that an unmodified picker prefers the replica that has a request's model, or will have it, to one that
would have to load it; those on their way stand as waiting ones too. `max_lora` above the number of both says
that a further model fits without an eviction. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_MODEL = "-"  # no model can have this name. A picker keeps its last lists when both come empty
MAX_AGE_S = 0.05  # the picker's own period; however many scrape, the page is made once in it


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What the picker decides by. Names are those that clients use, aliases included.

    `resident` models are in memory, awake or asleep; `coming` ones are on their way. `kv_cache_usage` is 0..1
    over all models in memory; `num_more` names could be served without an eviction.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    resident: Sequence[str]
    coming: Sequence[str]
    num_more: int


def render(load: ReplicaLoad, unix_time_s: float) -> bytes:
    """The page. The adapters' series has the time as its value: the picker takes the newest."""
    held, coming = (*load.resident, *load.coming) or (NO_MODEL,), load.coming
    names = f'running_lora_adapters="{_names(held)}",waiting_lora_adapters="{_names(coming)}"'
    max_lora = len(held) + len(coming) + load.num_more
    return (
        "# TYPE vllm:num_requests_running gauge\n"
        f"vllm:num_requests_running {load.num_running}\n"
        "# TYPE vllm:num_requests_waiting gauge\n"
        f"vllm:num_requests_waiting {load.num_waiting}\n"
        "# TYPE vllm:kv_cache_usage_perc gauge\n"
        f"vllm:kv_cache_usage_perc {load.kv_cache_usage:.6g}\n"
        "# TYPE vllm:lora_requests_info gauge\n"
        f'vllm:lora_requests_info{{max_lora="{max_lora}",{names}}} {unix_time_s:.3f}\n'
    ).encode()


class EndpointPickerPage:
    """The page, made at most once per `max_age_s` however often it is asked for.

    `measure` says how the replica stands (its cost is what a scrape costs), `clock` gives monotonic seconds,
    `wall_clock` seconds since the epoch.
    """

    def __init__(
        self,
        measure: Callable[[], ReplicaLoad],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._measure = measure
        self._clock = clock
        self._wall_clock = wall_clock
        self._max_age_s = max_age_s
        self._page = b""
        self._made_s: float | None = None

    def get(self) -> bytes:
        """A page that is no older than `max_age_s`."""
        now_s = self._clock()
        if self._made_s is None or now_s - self._made_s >= self._max_age_s:
            self._page = render(self._measure(), self._wall_clock())
            self._made_s = now_s
        return self._page


def _names(names: Sequence[str]) -> str:
    """As the picker splits them; the configuration allows no name with a comma, quote or backslash."""
    return ",".join(names)
