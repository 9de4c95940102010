"""Rows 5, 12, 13, 20 to 25: checkpoints that bite, clients that vanish, queues, faults and farewells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints.files import LLAMA, write_folder
from tests.security.wire import chat, request, wire
from tests.server.running import RunningServer, process_status, resident_megabytes, running_server
from tests.server.test_faults import gauge, until

PATIENCE_S = 60.0


def config(folder: Path, text: str) -> Path:
    path = folder / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def ask(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/chat/completions", json=chat(**fields))


# ---------------------------------------------------------------- caches


def test_row_5_caches_are_bounded(server: RunningServer) -> None:
    """Ever new prompts, grammars and names: the fixture sees that the server has not grown.

    A scripted model has no tokenizer for grammars, which are checked and remembered before that is known.
    """
    for number in range(400):
        text = f"prompt {number} " * 20
        assert ask(server, messages=[{"role": "user", "content": text}], user=f"u{number}").status_code == 200
        assert ask(server, guided_regex=f"a{number}b?").status_code == 400
        assert ask(server, model=f"nobody-{number}").status_code == 404
    assert gauge(server, "vllm:kv_cache_usage_perc", "m") == 0


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def biting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Models whose folders hold pickles, or want to run code of their own."""
    folder = tmp_path_factory.mktemp("biting")
    pickled = write_folder(folder / "pickled")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    mapped = write_folder(folder / "mapped", LLAMA | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}})
    (mapped / "evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')", encoding="utf-8")
    kernel = write_folder(folder / "kernel", LLAMA | {"_attn_implementation": "evil/kernel"})
    entries = {"pickled": pickled, "mapped": mapped, "kernel": kernel}
    lines = "".join(f"  {name}: {{source: {path}}}\n" for name, path in entries.items())
    text = f"models:\n  m: {{source: scripted, preload: true}}\n{lines}"
    with running_server(config(folder, text)) as server:
        yield server
        assert not (folder / "owned").exists()


def test_row_12_pickled_weights_are_refused(biting: RunningServer) -> None:
    response = ask(biting, model="pickled")
    assert response.status_code in (500, 503)
    assert "allow_pickle" in response.json()["error"]["message"]
    assert ask(biting).status_code == 200


@pytest.mark.parametrize("model", ["mapped", "kernel"])
def test_row_13_checkpoints_that_bring_code_are_refused(biting: RunningServer, model: str) -> None:
    response = ask(biting, model=model)
    assert response.status_code in (500, 503)
    assert "trust_remote_code" in response.json()["error"]["message"]
    assert ask(biting).status_code == 200


def test_row_13_also_where_assertions_are_off(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA | {"auto_map": {"AutoConfig": "evil.Evil"}})
    script = (
        "from pathlib import Path; from inference_server.checkpoints.inspection import inspect_folder; "
        f"inspect_folder(Path({str(folder)!r}), allow_pickle=False, trust_remote_code=False)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "trust_remote_code" in done.stderr


# ---------------------------------------------------------------- clients that vanish


async def vanish(server: RunningServer, number: int, model: str) -> None:
    """Send a request and leave: at once, in the middle of it, or after the first bytes of the answer."""
    body = chat(model=model, stream=bool(number % 2), ignore_eos=True, max_tokens=20_000)
    sent = request(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.suppress(ConnectionError):
        writer.write(sent if number % 5 else sent[: len(sent) // 2])
        await writer.drain()
        if number % 3 == 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
        if number % 7 == 0:
            writer.transport.abort()
    writer.close()


def check_that_vanishing_leaves_nothing(folder: Path, num_clients: int) -> None:
    """Running, queued, waiting for a load: all of them are gone soon after, with all they held."""
    text = """
models:
  m: {source: 'scripted:?output_tokens=30000&step_ms=2', preload: true, max_model_len: 32768}
  cold: {source: 'scripted:?output_tokens=30000&step_ms=2&load_ms=1500', max_model_len: 32768}
"""
    with running_server(config(folder, text), "--max-num-seqs", "16") as server:
        assert ask(server, max_tokens=2).status_code == 200
        before = resident_megabytes(server.process.pid)

        async def crowd() -> None:
            for start in range(0, num_clients, 100):
                clients = range(start, min(start + 100, num_clients))
                await asyncio.gather(*(vanish(server, n, "cold" if n % 4 == 0 else "m") for n in clients))

        asyncio.run(crowd())
        until(lambda: all_idle(server), timeout_s=PATIENCE_S)
        for model in ("m", "cold"):
            assert ask(server, model=model, max_tokens=2).status_code == 200
            assert gauge(server, "vllm:kv_cache_usage_perc", model) == 0
        assert resident_megabytes(server.process.pid) - before <= 10


def all_idle(server: RunningServer) -> bool:
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    if any(gauge(server, name, model) for name in gauges for model in ("m", "cold")):
        return False
    return not any(model["num_leases"] for model in server.client.get("/models").json()["data"])


def test_row_20_a_hundred_clients_that_vanish_leave_nothing(tmp_path: Path) -> None:
    check_that_vanishing_leaves_nothing(tmp_path, 100)


@pytest.mark.slow
def test_row_20_a_thousand_clients_that_vanish_leave_nothing(tmp_path: Path) -> None:
    check_that_vanishing_leaves_nothing(tmp_path, 1000)


# ---------------------------------------------------------------- overload and time


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose queues are short, with models that fail in all ways."""
    text = """
models:
  slow: {source: 'scripted:?output_tokens=30000&step_ms=20', preload: true, max_model_len: 32768}
  m: {source: 'scripted:?output_tokens=4&prompt_faults=1', preload: true}
  failing: {source: 'scripted:?load_error=failed'}
  greedy: {source: 'scripted:?load_error=oom'}
"""
    folder = tmp_path_factory.mktemp("small")
    limits = ("--max-num-queued-reqs", "2", "--max-num-seqs", "2", "--max-queued-tokens", "2000")
    with running_server(config(folder, text), *limits) as server:
        yield server


def test_row_21_a_full_queue_is_a_429_at_once_with_an_honest_time(small: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        body = chat(model="slow", stream=True, ignore_eos=True, max_tokens=20_000)
        for _ in range(4):
            stack.enter_context(small.client.stream("POST", "/v1/chat/completions", json=body))
        waits = []
        for _ in range(50):
            started_s = time.perf_counter()
            response = ask(small, model="slow")
            waits.append(time.perf_counter() - started_s)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "queue_full"
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert sorted(waits)[len(waits) // 2] < 0.05
        assert ask(small).status_code == 200  # another model's queue is another one
    until(lambda: gauge(small, "vllm:num_requests_running", "slow") == 0)


def test_row_21_prompts_of_too_many_tokens_are_a_429_too(small: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        body = chat(model="slow", stream=True, ignore_eos=True, max_tokens=20_000)
        for _ in range(2):  # these run
            response = stack.enter_context(small.client.stream("POST", "/v1/chat/completions", json=body))
            next(line for line in response.iter_lines() if line.startswith("data:"))
        long = [{"role": "user", "content": "word " * 1500}]
        stack.enter_context(
            small.client.stream("POST", "/v1/chat/completions", json=body | {"messages": long})
        )
        response = ask(small, model="slow", messages=long)
        assert response.status_code == 429
        assert "tokens wait" in response.json()["error"]["message"]
    until(lambda: gauge(small, "vllm:num_requests_running", "slow") == 0)


def test_row_22_a_load_that_fails_is_left_alone_for_a_while(small: RunningServer) -> None:
    first, second = ask(small, model="failing"), ask(small, model="failing")
    for response in (first, second):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_load_failed"
        assert 1 <= int(response.headers["retry-after"]) <= 300
    assert ask(small).status_code == 200


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize("fault", ["oom", "kill"])
def test_row_23_a_fault_is_typed_and_the_next_request_is_served(
    small: RunningServer, fault: str, stage: str
) -> None:
    response = ask(small, messages=[{"role": "user", "content": f"fault:{fault}:{stage}"}])
    expected = {"oom": (503, "insufficient_memory"), "kill": (500, "worker_died")}[fault]
    assert (response.status_code, response.json()["error"]["code"]) == expected
    assert ask(small).status_code == 200
    assert ask(small, model="slow", max_tokens=2).status_code == 200


def test_row_23_memory_that_runs_out_in_a_load_is_typed(small: RunningServer) -> None:
    response = ask(small, model="greedy")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "insufficient_memory")
    assert ask(small).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_row_25_a_deadline_is_an_error_and_never_a_short_answer(small: RunningServer, stream: bool) -> None:
    body = chat(model="slow", stream=stream, ignore_eos=True, max_tokens=20_000, timeout=0.5)
    response = small.client.post("/v1/chat/completions", json=body)
    if stream:
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
        assert not any('"finish_reason":"' in event for event in events)
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_row_25_a_deadline_in_the_queue_is_a_504(small: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        body = chat(model="slow", stream=True, ignore_eos=True, max_tokens=20_000)
        for _ in range(2):
            stack.enter_context(small.client.stream("POST", "/v1/chat/completions", json=body))
        headers = {"x-request-timeout": "0.3"}
        response = small.client.post("/v1/chat/completions", json=chat(model="slow"), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_row_24_a_leaving_server_finishes_its_streams(tmp_path: Path) -> None:
    text = "models: {m: {source: 'scripted:?output_tokens=30000&step_ms=20', preload: true}}"
    with running_server(config(tmp_path, text)) as server, wire(server.port) as late:
        workers = server.children()
        body = chat(stream=True, ignore_eos=True, max_tokens=50)
        with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data:"))
            server.signal(signal.SIGTERM)
            until(lambda: server.client.get("/readyz").status_code == 503, timeout_s=1)
            late.send(request(chat()))
            answer = late.answer()
            assert (answer.status, answer.error["code"]) == (503, "shutting_down")
            assert [line for line in lines if line.startswith("data:")][-1] == "data: [DONE]"
        assert server.process.wait(timeout=20) == 0
        assert not any(process_status(pid) for pid in workers)
