"""`bench startup`: how long `helixflow serve` takes from the start of its process to its first answer.

A cold start finds an empty cache folder, in which only downloads are kept: conversion and compilation are
done anew. A warm one finds what earlier starts have left. It knows what lies in the cache, not who wrote it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from inference_server.bench.measurement import now
from inference_server.bench.options import ReportOptions, StartupOptions
from inference_server.bench.plot import startup_page
from inference_server.bench.report import check_files, deliver, progress
from inference_server.bench.server_process import free_port, running
from inference_server.bench.statistics import Result
from inference_server.bench.tables import print_startup
from inference_server.bench.target import READY_TIMEOUT_S, HelixFlowLaunch, first_model
from inference_server.errors import Unavailable

_DOWNLOADS = ("artifacts", "digests")  # what a cold start is not made to fetch or read again
_COMPILER_CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
_ANSWER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to: the loop answers, models are in memory, a chat is done."""

    live_s: float
    ready_s: float
    first_answer_s: float


def run_startup(options: StartupOptions, report: ReportOptions) -> int:
    """Start as often as asked, cold ones first, and report.

    Raises:
        Unavailable: a server did not come up or did not answer.
        ConfigError: a file cannot be written.
    """
    check_files(report)
    with progress("starts", options.num_cold + options.num_warm) as tick:
        cold, warm = [], []
        for _ in range(options.num_cold):
            with _cold_cache(options.cache_dir) as (folder, env):
                cold.append(_timed_start(options, folder, env))
            tick()
        for _ in range(options.num_warm):
            warm.append(_timed_start(options, options.cache_dir, {}))
            tick()
    result = _result(options, [start for _, start in cold], [start for _, start in warm])
    result["model"] = (cold + warm)[0][0]
    deliver(result, report, show=print_startup, draw=lambda: startup_page(result))
    return 0


def _timed_start(options: StartupOptions, cache_dir: Path, env: Mapping[str, str]) -> tuple[str, Start]:
    """The model that answered, and when."""
    named = (options.model,) if options.model is not None else ()
    flags = (*named, *options.server_flags, "--cache-dir", str(cache_dir))
    launch = HelixFlowLaunch(free_port(), flags, env)
    with (
        tempfile.TemporaryDirectory(prefix="helixflow-bench-") as folder,
        running(launch, Path(folder) / "server.log") as server,
    ):
        live_s = server.wait_until("/health/live", READY_TIMEOUT_S)
        ready_s = server.wait_until("/health/ready", READY_TIMEOUT_S)
        model = options.model or first_model(server.base_url, options.api_key)
        _ask(server.base_url, model, options.api_key)
        return model, Start(live_s, ready_s, time.perf_counter() - server.start_s)


def _ask(base_url: str, model: str, api_key: str | None) -> None:
    """One short chat.

    Raises:
        Unavailable: it was not answered.
    """
    message = {"role": "user", "content": "What is the capital of France? One sentence."}
    body = {"model": model, "messages": [message], "max_tokens": 16}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    url = f"{base_url}/v1/chat/completions"
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=_ANSWER_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Unavailable(f"the first chat failed: {error or type(error).__name__}") from error
    if not response.is_success:
        raise Unavailable(f"the first chat was answered with status {response.status_code}: {response.text}")


@contextlib.contextmanager
def _cold_cache(cache_dir: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A cache folder with the downloads of `cache_dir` and no more; the compilers' caches lie in it too."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cold-", dir=cache_dir.parent) as name:
        folder = Path(name)
        for kept in _DOWNLOADS:
            if (cache_dir / kept).is_dir():
                shutil.copytree(cache_dir / kept, folder / kept, copy_function=os.link)
        yield folder, {variable: str(folder / variable.lower()) for variable in _COMPILER_CACHES}


def _result(options: StartupOptions, cold: Sequence[Start], warm: Sequence[Start]) -> Result:
    result: Result = {"date": now(), "model": options.model, "server_flags": list(options.server_flags)}
    for kind, starts in (("cold", cold), ("warm", warm)):
        ready_s = [start.ready_s for start in starts]
        result[f"avg_{kind}_startup_time"] = statistics.fmean(ready_s) if ready_s else None
        result[f"{kind}_startup_times"] = ready_s
        first_s = [start.first_answer_s for start in starts]
        result[f"median_{kind}_first_answer_time"] = statistics.median(first_s) if first_s else None
        result[kind] = [asdict(start) for start in starts]
    return result
