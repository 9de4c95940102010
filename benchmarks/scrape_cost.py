"""What scrapes cost the server: milliseconds of its processor time per page, and how long a page takes.

A server of its own with scripted models is asked for `/livez` (the floor: what any request costs),
`/metrics/epp` and `/metrics`, each so many times a second (an endpoint picker's 20) for some seconds; then
again for `/metrics/epp` while a model loads. Processor time is that of the server process's threads
(/proc/PID/task/*/schedstat), less what the same seconds cost without any scrape.

`python -m benchmarks.scrape_cost [--models N] [--seconds S] [--rate HZ]`
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from inference_server.bench.server_process import ServerProcess, free_port
from inference_server.bench.target import HelixFlowLaunch, own_server

NUM_LOADS = 2  # one is watched without scrapes, one with
MARGIN_S = 2.5  # a load lasts so much longer than its measurement: a busy machine's clocks slip


@dataclass(frozen=True)
class Cost:
    """Of one page, scraped at a steady rate: milliseconds, and the page's bytes."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float
    num_bytes: int
    num_pages: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=int, default=20, help="models that are configured and have answered")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=20)
    arguments = parser.parse_args()
    print("| page | server CPU, ms per page | p50 ms | p99 ms | bytes | pages |")
    print("|---|---|---|---|---|---|")
    with scraped_server(arguments.models, arguments.seconds) as server:
        for path in ("/livez", "/metrics/epp", "/metrics"):
            show(path, scrape_cost(server, path, arguments.seconds, arguments.rate))
        cost = cost_during_load(server, "/metrics/epp", arguments.seconds, arguments.rate)
        show("/metrics/epp during a load", cost)


def show(name: str, cost: Cost) -> None:
    """One row."""
    figures = (
        f"{cost.cpu_ms:.2f} | {cost.p50_ms:.2f} | {cost.p99_ms:.2f} | {cost.num_bytes} | {cost.num_pages}"
    )
    print(f"| {name} | {figures} |")


@contextlib.contextmanager
def scraped_server(num_models: int, load_s: float) -> Iterator[ServerProcess]:
    """A server whose models have all answered once, and more that take `load_s` to load."""
    quick = "".join(f"  m{n}: {{source: 'scripted:?output_tokens=8'}}\n" for n in range(num_models))
    slow = "".join(
        f"  slow{n}: {{source: 'scripted:?load_ms={(load_s + MARGIN_S) * 1000:.0f}'}}\n"
        for n in range(NUM_LOADS)
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(f"models:\n{quick}{slow}", encoding="utf-8")
        with own_server(HelixFlowLaunch(free_port(), ("--config", str(config)))) as server:
            for number in range(num_models):
                body = {"model": f"m{number}", "messages": [{"role": "user", "content": "x"}]}
                url = f"{server.base_url}/v1/chat/completions"
                httpx.post(url, json=body, timeout=60).raise_for_status()
            yield server


def scrape_cost(server: ServerProcess, path: str, seconds: float, rate_hz: float) -> Cost:
    """Of `path`, `rate_hz` times a second for some seconds on an idle server."""
    idle_s = cpu_during(server.pid, lambda: time.sleep(seconds))
    return _scraped(server, path, seconds, rate_hz, idle_s)


def cost_during_load(server: ServerProcess, path: str, seconds: float, rate_hz: float) -> Cost:
    """The same while a model loads, compared with another load that nobody watches."""
    with _loading(server, "slow0"):
        unwatched_s = cpu_during(server.pid, lambda: time.sleep(seconds))
    with _loading(server, "slow1"):
        return _scraped(server, path, seconds, rate_hz, unwatched_s)


def cpu_during(pid: int, work: Callable[[], object]) -> float:
    """Seconds that the process's threads computed meanwhile."""
    before = _cpu_ns(pid)
    work()
    return (_cpu_ns(pid) - before) / 1e9


def _scraped(server: ServerProcess, path: str, seconds: float, rate_hz: float, idle_s: float) -> Cost:
    times_s: list[float] = []
    num_bytes = 0
    with httpx.Client(base_url=server.base_url) as client:
        client.get(path)

        def scrape() -> None:
            nonlocal num_bytes
            started_s = time.perf_counter()
            for number in range(round(seconds * rate_hz)):
                time.sleep(max(0.0, started_s + number / rate_hz - time.perf_counter()))
                asked_s = time.perf_counter()
                num_bytes = len(client.get(path).raise_for_status().content)
                times_s.append(time.perf_counter() - asked_s)

        cpu_s = cpu_during(server.pid, scrape)
    ordered = sorted(times_s)
    return Cost(
        cpu_ms=max(0.0, cpu_s - idle_s) / len(ordered) * 1e3,
        p50_ms=ordered[len(ordered) // 2] * 1e3,
        p99_ms=ordered[int(len(ordered) * 0.99)] * 1e3,
        num_bytes=num_bytes,
        num_pages=len(ordered),
    )


@contextlib.contextmanager
def _loading(server: ServerProcess, model: str) -> Iterator[None]:
    """The model is on its way for the length of the block."""

    def load() -> None:
        httpx.post(f"{server.base_url}/models/load", json={"model": model}, timeout=600).raise_for_status()

    thread = threading.Thread(target=load)
    thread.start()
    with httpx.Client(base_url=server.base_url) as client:
        while f'waiting_lora_adapters="{model}"' not in client.get("/metrics/epp").text:
            time.sleep(0.05)
        yield
        if model not in client.get("/metrics/epp").text.rpartition("waiting_lora_adapters")[2]:
            raise RuntimeError(f"{model} was loaded before the measurement ended; the figures are of no load")
    thread.join()


def _cpu_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


if __name__ == "__main__":
    main()
