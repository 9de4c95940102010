"""Loading and unloading for ever costs nothing: memory, descriptors, threads and processes come back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.demo import demo_folder
from tests.server.conftest import WriteConfig
from tests.server.running import RunningServer, process_status, running_server

TOLERANCE = 0.02
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
    """The processes that outlive every model: the server, and its one child while nothing is loaded."""
    (fork_server,) = server.children()
    return {"server": server.process.pid, "fork server": fork_server}


def zombies_below(pid: int) -> list[int]:
    """Ended children of this process that nobody has waited for."""
    statuses = ((int(name), process_status(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return [
        child
        for child, status in statuses
        if status and int(status["PPid"]) == pid and status["State"].startswith("Z")
    ]


def cycle(server: RunningServer, model: str) -> None:
    """Load by a request, answer it, unload."""
    assert server.chat("hello", model=model, max_tokens=2).status_code == 200
    assert server.client.post("/models/unload", json={"model": model}).status_code == 200


def check_cycles(config: Path, model: str, *, num_warm_up: int, num_cycles: int) -> None:
    """After the first cycles have filled every cache, `num_cycles` more leave nothing behind."""
    with running_server(config, "--log-level", "warning") as server:
        for _ in range(num_warm_up):
            cycle(server, model)
        pids = lasting(server)
        before = {name: holdings(pid) for name, pid in pids.items()}
        for _ in range(num_cycles):
            cycle(server, model)
        assert lasting(server) == pids
        for name, pid in pids.items():
            after = holdings(pid)
            grown = after.resident_kib / before[name].resident_kib - 1
            assert grown < TOLERANCE, f"{name}: {before[name]} became {after}"
            assert after.num_descriptors <= before[name].num_descriptors, name
            assert after.num_threads <= before[name].num_threads, name
            assert zombies_below(pid) == []


def config_for(write_config: WriteConfig, source: str) -> Path:
    return write_config(
        f"models:\n  m:\n    source: {source}\n    max_model_len: 1024\n    kv_cache: {{tokens: 4096}}\n"
    )


def test_ten_loads_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, f"'{SCRIPTED}'"), "m", num_warm_up=5, num_cycles=10)


@pytest.mark.slow
def test_two_hundred_loads_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, f"'{SCRIPTED}'"), "m", num_warm_up=20, num_cycles=200)


@pytest.mark.slow
@pytest.mark.model
def test_loads_of_a_real_model_leave_nothing_behind(write_config: WriteConfig) -> None:
    check_cycles(config_for(write_config, str(demo_folder())), "m", num_warm_up=5, num_cycles=20)
