"""The lifecycle of models over HTTP and from the command line, in a real server with scripted models."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminals import run
from tests.server.conftest import WriteConfig
from tests.server.running import RunningServer, running_server

CONFIG = """
models:
  quick: {source: 'scripted:?output_tokens=4', aliases: [fast], keep_alive: 10m}
  slow: {source: 'scripted:?output_tokens=4&load_ms=1500'}
"""


@pytest.fixture
def config(write_config: WriteConfig) -> Path:
    """A models.yaml that the test may rewrite."""
    return write_config(CONFIG)


@pytest.fixture
def server(config: Path) -> Iterator[RunningServer]:
    """A server of the test's own."""
    with running_server(config) as running:
        yield running


def models(server: RunningServer) -> dict[str, Any]:
    return {model["id"]: model for model in server.client.get("/models").json()["data"]}


def wait_until_served(server: RunningServer, names: set[str]) -> None:
    """A signal is handled when its turn comes."""
    deadline_s = time.monotonic() + 20
    while set(models(server)) != names:
        assert time.monotonic() < deadline_s, models(server)
        time.sleep(0.02)


def test_a_reload_by_request_or_signal_serves_what_the_file_says_and_a_broken_file_changes_nothing(
    server: RunningServer, config: Path
) -> None:
    assert server.chat("x", model="quick").status_code == 200
    config.write_text(CONFIG.replace("slow:", "other:") + "  more: {source: scripted}\n", encoding="utf-8")
    report = server.client.post("/models/reload").json()
    assert report == {"success": True, "added": ["other", "more"], "removed": ["slow"], "changed": []}
    assert models(server)["quick"]["status"] == "loaded"
    assert server.chat("x", model="more").status_code == 200
    assert server.chat("x", model="slow").status_code == 404

    config.write_text("models: {quick: {sorce: scripted}}\n", encoding="utf-8")
    refused = server.client.post("/models/reload")
    assert refused.status_code == 400
    assert "sorce" in refused.json()["error"]["message"]
    assert set(models(server)) == {"quick", "other", "more"}

    config.write_text(CONFIG + "server: {max_num_seqs: 7, log_level: debug}\n", encoding="utf-8")
    assert server.client.post("/models/reload").status_code == 200
    assert "changed and not applied before a restart: max_num_seqs, log_level" in server.log

    config.write_text(CONFIG, encoding="utf-8")
    server.signal(signal.SIGHUP)
    wait_until_served(server, {"quick", "slow"})
    assert server.chat("x", model="fast").status_code == 200
    page = server.client.get("/metrics").text
    assert 'model="more"' not in page
    assert 'helixflow_model_state{model="slow",state="unloaded"} 1.0' in page


def test_the_stream_of_events_follows_a_load_and_ends_with_the_server(server: RunningServer) -> None:
    with server.client.stream("GET", "/models/sse") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))
        first = {event["model"]: event["event"] for event in (next(told), next(told))}
        assert first == {"quick": "model_status", "slow": "model_status"}
        loading = threading.Thread(target=server.chat, args=("x",), kwargs={"model": "slow"})
        loading.start()
        states, fractions = [], []
        for event in told:
            assert event["model"] == "slow"
            states.append(event["data"]["state"])
            fractions.append((event["data"]["progress"] or {}).get("fraction"))
            if states[-1] == "ready":
                break
        loading.join()
        assert list(dict.fromkeys(states)) == ["fetching", "loading", "ready"]
        assert any(fraction and 0 < fraction < 1 for fraction in fractions)
        server.signal(signal.SIGTERM)
        rest = [event["data"]["state"] for event in told]  # ends, and in an orderly way
        assert set(rest) <= {"draining", "unloaded"}
    assert server.process.wait(timeout=30) == 0


def test_keep_alive_of_a_request_and_of_the_entry_decide_when_a_model_goes(server: RunningServer) -> None:
    assert server.chat("x", model="quick").status_code == 200
    assert 590 < models(server)["quick"]["expires_in_s"] <= 600
    assert server.chat("x", model="quick", keep_alive="1h").status_code == 200
    assert 3500 < models(server)["quick"]["expires_in_s"] <= 3600
    (running,) = server.client.get("/api/ps").json()["models"]
    assert (running["name"], running["details"]["family"]) == ("quick", "scripted")
    assert server.chat("x", model="quick", keep_alive=0).status_code == 200
    deadline_s = time.monotonic() + 20
    while models(server)["quick"]["status"] != "unloaded":
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert server.client.get("/api/ps").json() == {"models": []}
    assert 'reason="idle"} 1.0' in server.client.get("/metrics").text


def test_endpoint_pickers_are_answered_during_a_load_without_a_key(write_config: WriteConfig) -> None:
    with running_server(write_config(CONFIG), env={"HELIXFLOW_API_KEY": "secret"}) as server:
        headers = {"authorization": "Bearer secret"}
        body = {"model": "slow"}
        loading = threading.Thread(
            target=server.client.post, args=("/models/load",), kwargs={"json": body, "headers": headers}
        )
        loading.start()
        waiting = resident = 0
        while loading.is_alive():
            page = server.client.get("/metrics/epp").text
            waiting += 'waiting_lora_adapters="slow"' in page
            time.sleep(0.05)  # a picker's own period
        loading.join()
        resident = server.client.get("/metrics/epp").text.count('running_lora_adapters="slow"')
        assert waiting > 10
        assert resident == 1
        assert server.client.get("/models").status_code == 401


def test_the_commands_load_show_list_and_stop_a_model(server: RunningServer) -> None:
    where = ("--base-url", server.url)
    loaded = run("load", "slow", *where)
    assert (loaded.status, loaded.out) == (0, "slow is loaded\n")
    assert "load …" in loaded.err  # its stages, as there is no terminal for bars
    listed = run("ps", *where)
    assert listed.out.splitlines()[1].split()[:2] == ["slow", "loaded"]
    assert "reserved" in listed.out
    assert "slow" in run("list", *where).out
    stopped = run("stop", "slow", *where)
    assert stopped.status == 0
    assert "no model is in memory" in run("ps", *where).err
    unknown = run("load", "slwo", *where)
    assert unknown.status == 1
    assert "did you mean 'slow'" in unknown.err
