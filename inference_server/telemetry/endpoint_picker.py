"""The page that an endpoint picker (Kubernetes Gateway API Inference Extension) scrapes every 50 ms.

Four process-wide series under vLLM's names. Models in memory stand as running adapters and those on their way
as waiting ones, so that an unmodified picker prefers the replica that already holds a request's model.
`max_lora` above the number of both says that a further model fits without an eviction. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_AGE_S = 0.05  # the picker's own period; however many scrape, the page is made once in it


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What the picker decides by. Names are those that clients use, aliases included.

    `kv_cache_usage` is 0..1 over all models in memory; `num_more` names could be served without an eviction.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    resident: Sequence[str]
    coming: Sequence[str]
    num_more: int


def render(load: ReplicaLoad, unix_time_s: float) -> bytes:
    """The page. The adapters' series has the time as its value: the picker takes the newest."""
    names = f'running_lora_adapters="{_names(load.resident)}",waiting_lora_adapters="{_names(load.coming)}"'
    max_lora = len(load.resident) + len(load.coming) + load.num_more
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
