"""Loading, sleeping and unloading for ever: memory, descriptors, threads and processes come back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.demo import demo_folder
from tests.server.conftest import WriteConfig
from tests.server.running import RunningServer, process_status, running_server

TOLERANCE = 0.02
MAX_POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)  # asyncio's own pool gets a thread when none is idle
SCRIPTED = "scripted:?load_ms=1"


@dataclass(frozen=True)
class Holdings:
    """What one process holds."""

    resident_kib: int
    num_descriptors: int
    num_threads: int


def holdings(pid: int) -> Holdings:
    status = process_status(pid)
    return Holdings(
        resident_kib=int(status["VmRSS"].split()[0]),
        num_descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        num_threads=int(status["Threads"]),
    )


def lasting(server: RunningServer) -> dict[str, int]:
    """The processes that there are now, by what they are."""
    names = {server.process.pid: "server"}
    for pid in server.children():
        is_worker = int(process_status(pid)["PPid"]) != server.process.pid
        names[pid] = "worker" if is_worker else "fork server"
    return {name: pid for pid, name in names.items()}


def zombies_below(pid: int) -> list[int]:
    """Ended children of this process that nobody has waited for."""
    statuses = ((int(name), process_status(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return [
        child
        for child, status in statuses
        if status and int(status["PPid"]) == pid and status["State"].startswith("Z")
    ]


def post(server: RunningServer, verb: str) -> None:
    assert server.client.post(f"/models/{verb}", json={"model": "m"}).status_code == 200


def load_and_unload(server: RunningServer) -> None:
    """Load by a request, answer it, unload."""
    assert server.chat("hello", model="m", max_tokens=2).status_code == 200
    post(server, "unload")


def sleep_and_wake(server: RunningServer) -> None:
    """Put to sleep, and wake by a request."""
    post(server, "sleep")
    assert server.chat("hello", model="m", max_tokens=2).status_code == 200


def check_cycles(
    config: Path,
    cycle: Callable[[RunningServer], None],
    *,
    num_warm_up: int,
    num_cycles: int,
    is_loaded: bool = False,
) -> None:
    """After the first cycles have filled every cache, `num_cycles` more leave nothing behind.

    With `is_loaded` the model's worker stays through all of them, and is looked at, too.
    """
    with running_server(config, "--log-level", "warning") as server:
        if is_loaded:
            post(server, "load")
        for _ in range(num_warm_up):
            cycle(server)
        pids = lasting(server)
        assert len(pids) == 2 + is_loaded
        before = {name: holdings(pid) for name, pid in pids.items()}
        for _ in range(num_cycles):
            cycle(server)
        assert lasting(server) == pids
        for name, pid in pids.items():
            after = holdings(pid)
            grown = after.resident_kib / before[name].resident_kib - 1
            assert grown < TOLERANCE, f"{name}: {before[name]} became {after}"
            assert after.num_descriptors <= before[name].num_descriptors, name
            spare = MAX_POOL_THREADS if name == "server" else 0
            assert after.num_threads <= before[name].num_threads + spare, name
            assert zombies_below(pid) == []


def config_for(write_config: WriteConfig, source: str) -> Path:
    return write_config(
        f"models:\n  m:\n    source: {source}\n    max_model_len: 1024\n    kv_cache: {{tokens: 4096}}\n"
    )


def test_ten_loads_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, f"'{SCRIPTED}'"), load_and_unload, num_warm_up=5, num_cycles=10)


def test_ten_sleeps_leave_nothing_behind(write_config: WriteConfig) -> None:
    config = config_for(write_config, f"'{SCRIPTED}'")
    check_cycles(config, sleep_and_wake, num_warm_up=5, num_cycles=10, is_loaded=True)


@pytest.mark.slow
def test_two_hundred_loads_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, f"'{SCRIPTED}'"), load_and_unload, num_warm_up=20, num_cycles=200)


@pytest.mark.slow
def test_two_hundred_sleeps_leave_nothing_behind(write_config: WriteConfig) -> None:
    config = config_for(write_config, f"'{SCRIPTED}'")
    check_cycles(config, sleep_and_wake, num_warm_up=20, num_cycles=200, is_loaded=True)


@pytest.mark.slow
@pytest.mark.model
def test_loads_of_a_real_model_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, str(demo_folder())), load_and_unload, num_warm_up=5, num_cycles=20)
