"""`bench serve` against a real port, good servers and bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_server.bench import run_serve
from inference_server.bench.client import EventSplitter
from inference_server.bench.options import LoadOptions, ReportOptions, TargetOptions
from inference_server.errors import ConfigError, Unavailable
from tests.bench.server import Body, Chunks, answer, event, piece, running

Load = dict[str, Any]


def serve(url: str, *, as_json: bool = True, load: Load | None = None, **changes: Any) -> int:
    """A small load; `load` and `changes` are options of the load and of the report."""
    small: Load = {
        "num_prompts": 6,
        "max_concurrency": 2,
        "input_len": 40,
        "output_len": 5,
        "ignore_eos": True,
    }
    target = TargetOptions(base_url=url, model="m", api_key="k")
    return run_serve(target, LoadOptions(**(small | (load or {}))), ReportOptions(as_json=as_json, **changes))


def test_a_load_is_measured_saved_and_printed_under_the_usual_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    with running() as server:
        goals_ms = {"ttft": 60000.0, "e2el": 60000.0}
        assert serve(server.url, goals_ms=goals_ms, save_result=file, plot=tmp_path / "plot.html") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == result
    assert (result["completed"], result["failed"], result["errors"], result["notes"]) == (6, 0, {}, [])
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (60, 30)
    assert result["request_goodput"] == result["request_throughput"] > 0
    assert result["max_concurrent_requests"] == 2
    assert (result["request_rate"], result["goodput"]) == ("inf", {"ttft": 60000, "e2el": 60000})
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for name in ("mean", "median", "std", "p50", "p90", "p95", "p99"):
            assert result[f"{name}_{metric}_ms"] >= 0
    assert len(server.bodies) == 7  # one more than measured: the trial
    assert (
        server.bodies[1].items()
        >= {"model": "m", "max_tokens": 5, "ignore_eos": True, "stream": True}.items()
    )
    assert all("authorization: bearer k" in head.lower() for head in server.headers)
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len({prompt[:10] for prompt in prompts}) >= 2


def test_the_table_shows_throughput_and_latencies(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server:
        assert serve(server.url, as_json=False, metrics=("ttft", "itl")) == 0
    shown = capsys.readouterr().out
    assert "requests completed" in shown
    assert "(ttft)" in shown
    assert "(tpot)" not in shown


def refusing(*names: str) -> Callable[[Body], Chunks | str]:
    """A server that does not know these fields."""

    def respond(body: Body) -> Chunks | str:
        unknown = [name for name in names if name in body]
        return f"unknown field {unknown[0]}" if unknown else answer(body)

    return respond


@pytest.mark.parametrize("names", [("ignore_eos",), ("stream_options",), ("ignore_eos", "stream_options")])
def test_servers_that_know_fewer_fields_are_measured_too_and_the_notes_say_so(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with running(refusing(*names)) as server:
        assert serve(server.url) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["completed"], result["total_output_tokens"]) == (6, 30)
    for name in names:
        assert any(name in note for note in result["notes"])
    has_usage = "stream_options" not in names
    assert result["total_input_tokens"] == (60 if has_usage else 0)
    assert any("no usage" in note for note in result["notes"]) is not has_usage


def test_a_server_that_takes_no_request_is_reported_with_its_own_words() -> None:
    with (
        running(lambda body: "the model `m` does not exist [sic]") as server,
        pytest.raises(Unavailable, match=r"does not serve m: .*the model `m` does not exist \[sic\]"),
    ):
        serve(server.url)


def test_no_server_at_all_is_reported_with_its_address() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 does not serve m"):
        serve("http://127.0.0.1:1")


def broken_event(body: Body) -> Chunks:
    """An error within the stream."""
    yield piece("so far")
    yield event({"error": {"message": "the worker died", "code": "worker_died"}})


def broken_off(body: Body) -> Chunks:
    """A stream that just ends."""
    yield piece("so far")


def broken_json(body: Body) -> Chunks:
    """Not JSON."""
    yield b"data: {\n\n"


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (broken_event, "the worker died"),
        (broken_off, "the stream ended before"),
        (broken_json, "DecodeError"),
        (lambda body: "no more", "status 400: no more"),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_requests_that_break_are_counted_as_failed_with_their_reason(
    broken: Callable[[Body], Chunks | str],
    error: str,
    as_json: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    num_requests = 0

    def respond(body: Body) -> Chunks | str:
        nonlocal num_requests
        num_requests += 1
        return broken(body) if num_requests in (3, 5) else answer(body)

    with running(respond) as server:
        assert serve(server.url, as_json=as_json) == 1
    shown = capsys.readouterr().out
    assert error in shown
    if as_json:
        result = json.loads(shown)
        assert (result["completed"], result["failed"], result["total_output_tokens"]) == (4, 2, 20)
        assert list(result["errors"].values()) == [2]


@pytest.mark.parametrize("option", ["save_result", "plot"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_sent(
    option: str, tmp_path: Path
) -> None:
    with running() as server:
        with pytest.raises(ConfigError, match="there is no folder"):
            serve(server.url, **{option: tmp_path / "no" / "such.html"})
        assert server.bodies == []


def test_a_label_gives_every_server_the_same_prompts() -> None:
    with running() as one, running() as other:
        for server in (one, other):
            assert serve(server.url, load={"label": "round1", "max_concurrency": 1}) == 0
    assert one.bodies == other.bodies
    assert len({body["messages"][0]["content"] for body in one.bodies}) == 7


def cut_off_without_usage(body: Body) -> Chunks:
    """Two tokens per piece of text, an end by length, no usage and no [DONE]."""
    yield piece("two tokens")
    yield event({"choices": [{"delta": {}, "finish_reason": "length"}]})


def test_without_usage_an_answer_that_ends_by_its_length_has_that_many_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running(cut_off_without_usage) as server:
        assert serve(server.url) == 0
    assert json.loads(capsys.readouterr().out)["total_output_tokens"] == 30


def test_events_are_found_however_the_bytes_are_cut() -> None:
    stream = b': hi\r\n\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:two\n\ndata: [DONE]\n\n'
    for size in range(1, len(stream) + 1):
        splitter = EventSplitter()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        found = [payload for data in pieces for payload in splitter.feed(data)]
        assert found == [b'{"a": 1}', b"two", b"[DONE]"]
