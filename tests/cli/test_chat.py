"""`helixflow chat` and `helixflow list` against a server."""

from __future__ import annotations

import _thread
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cli.server import DONE, HELLO, ScriptedServer, serving, text
from tests.cli.terminals import Result, run


def chat(server: ScriptedServer, *arguments: str, **options: object) -> Result:
    return run("chat", *arguments, "--base-url", server.url, **options)  # type: ignore[arg-type]


def test_one_message_prints_the_answer_and_nothing_else() -> None:
    with serving(HELLO) as server:
        result = chat(server, "warm", "-p", "Hi")
    assert (result.status, result.out, result.err) == (0, "Hello.\n", "")
    assert server.requests == [
        {"model": "warm", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    ]


def test_standard_input_that_is_no_terminal_is_one_message() -> None:
    with serving(HELLO) as server:
        result = chat(server, "warm", stdin="line 1\nline 2\n")
    assert result.out == "Hello.\n"
    assert server.requests[0]["messages"][0]["content"] == "line 1\nline 2\n"


def test_options_reach_the_server() -> None:
    with serving(HELLO) as server:
        flags = ("--temperature", "0.5", "--max-tokens", "7", "--seed", "3", "--system", "Be brief.")
        chat(server, "warm", "-p", "Hi", *flags)
    request = server.requests[0]
    assert (request["temperature"], request["max_tokens"], request["seed"]) == (0.5, 7, 3)
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_wrong_option_is_refused_before_anything_is_sent() -> None:
    with serving() as server:
        result = chat(server, "warm", "-p", "Hi", "--temperature", "9")
        empty = chat(server, "warm", stdin="\n")
    assert (result.status, empty.status) == (2, 2)
    assert "--temperature: expected a number from 0 to 2" in result.err
    assert "the message is empty" in empty.err
    assert server.headers == []


def test_without_a_model_a_loaded_one_is_chosen() -> None:
    with serving(HELLO) as server:
        chat(server, "-p", "Hi")
    assert server.requests[0]["model"] == "warm"


def test_address_and_key_come_from_the_environment() -> None:
    with serving(HELLO) as server:
        server.api_key = "k"
        env = {"HELIXFLOW_BASE_URL": server.url + "/v1/", "HELIXFLOW_API_KEY": "k"}
        assert run("chat", "warm", "-p", "Hi", env=env).out == "Hello.\n"


# ---------------------------------------------------------------- conversation


def conversation(
    server: ScriptedServer, *lines: str | type[BaseException], env: dict[str, str] | None = None
) -> Result:
    return chat(server, "warm", tty=True, lines=lines, env={"NO_COLOR": "1"} | (env or {}))


def test_a_conversation_keeps_its_history() -> None:
    with serving(HELLO, HELLO) as server:
        result = conversation(server, "Hi", "", "And?", "/exit")
    assert result.status == 0
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Hi", "Hello.", "And?"]
    assert result.out == "Hello.\nHello.\n"


def test_clear_forgets_the_history_but_not_the_system_message() -> None:
    with serving(HELLO, HELLO) as server:
        chat(server, "warm", "--system", "S", tty=True, lines=["Hi", "/clear", "New"])
    assert [m["content"] for m in server.requests[1]["messages"]] == ["S", "New"]


def test_end_of_input_leaves() -> None:
    with serving() as server:
        assert conversation(server).status == 0


def test_help_lists_the_commands_and_an_unknown_one_is_not_sent() -> None:
    with serving() as server:
        result = conversation(server, "/help", "/claer", "/zzz")
    assert "/clear   forget" in result.out
    assert "unknown command /claer; did you mean `/clear`?" in result.err
    assert "unknown command /zzz; /help lists" in result.err
    assert server.requests == []


def test_ctrl_c_at_the_prompt_does_not_leave() -> None:
    with serving(HELLO) as server:
        result = conversation(server, KeyboardInterrupt, "Hi", "/exit")
    assert (result.status, len(server.requests)) == (0, 1)
    assert "/exit or Ctrl-D leaves" in result.err


def test_an_answer_that_hits_the_length_limit_says_so() -> None:
    with serving((text("Hel"), text("", "length"), DONE)) as server:
        result = conversation(server, "Hi")
    assert result.out == "Hel\n\n"
    assert "cut short" in result.err


def test_loading_progress_is_shown_and_removed() -> None:
    with serving((": loading model … 43%\n\n", *HELLO)) as server:
        result = conversation(server, "Hi")
    assert "loading model … 43%\r\x1b[2K" in result.err
    assert result.out.startswith("Hello.")


def test_control_characters_of_an_answer_do_not_reach_a_terminal() -> None:
    with serving((text("a\x1b[31mb\x07\x9bc\td\n"), text("", "stop"), DONE)) as server:
        assert conversation(server, "Hi").out == "a[31mbc\td\n\n"


# ---------------------------------------------------------------- failures


def test_a_message_that_failed_leaves_the_history_and_the_conversation_goes_on() -> None:
    refused = (429, {"error": {"message": "The queue is full", "code": "queue_full"}})
    with serving(refused, HELLO) as server:
        result = conversation(server, "Hi", "Hi again")
    assert "error: The queue is full" in result.err
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Hi again"]


def test_an_error_within_an_answer_keeps_what_was_said() -> None:
    broken = (text("Hel"), 'data: {"error": {"message": "The worker died", "code": "worker_died"}}\n\n')
    with serving(broken, HELLO) as server:
        result = conversation(server, "Hi", "Go on")
    assert result.out.startswith("Hel\n")
    assert "error: The worker died" in result.err
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Hi", "Hel", "Go on"]


def test_a_conversation_that_grew_too_long_says_what_to_do() -> None:
    refused = (400, {"error": {"message": "Too long", "code": "context_length_exceeded"}})
    with serving(HELLO, refused) as server:
        assert "/clear forgets it" in conversation(server, "Hi", "More").err


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((text("Hel"),), "ended the answer before it was complete"),
        ((500, {}), "the server answered with status 500"),
        ((500, ["odd"]), "the server answered with status 500"),
        (("data: nonsense\n\n",), "not a JSON object"),
    ],
)
def test_one_message_that_fails_has_status_1(answer: object, expected: str) -> None:
    with serving(answer) as server:
        result = chat(server, "warm", "-p", "Hi")
    assert result.status == 1
    assert expected in result.err


def test_a_wrong_key_says_how_to_give_one() -> None:
    with serving() as server:
        server.api_key = "k"
        result = run("list", "--base-url", server.url)
    assert result.status == 1
    assert "set HELIXFLOW_API_KEY or give --api-key" in result.err


def test_a_server_that_is_not_there_says_how_to_start_one() -> None:
    with serving() as server:
        url = server.url
    result = run("chat", "-p", "Hi", "--base-url", url)
    assert result.status == 1
    assert f"no server answers at {url}; start one with `helixflow serve`" in result.err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    result = run("list", "--base-url", url or "//")
    assert result.status == 1
    assert "--base-url: expected an address such as" in result.err


def test_list_of_a_server_shows_states_and_memory() -> None:
    with serving() as server:
        result = run("list", "--base-url", server.url)
        as_json = json.loads(run("list", "--json", env={"HELIXFLOW_BASE_URL": server.url}).out)
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[1] == ["cold", "unloaded", "-", "-", "64", "-", "-"]
    assert lines[2] == ["warm", "loaded", "cpu", "1", "GiB", "4096", "-", "-"]
    assert lines[3][-1] == "warm"
    assert [model["id"] for model in as_json["models"]] == ["cold", "warm", "gpt"]


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    def interrupted() -> Iterator[object]:
        yield text("Hel")
        yield _thread.interrupt_main
        while True:  # until the client has left
            yield text("x")

    with serving(interrupted(), HELLO) as server:
        result = conversation(server, "Hi", "Go on", "/exit")
        assert server.left.wait(10)
    assert result.status == 0
    assert "stopped" in result.err
    assert result.out.endswith("Hello.\n")
    assert server.requests[1]["messages"][-1]["content"] == "Go on"


def test_ctrl_c_in_a_real_terminal() -> None:
    released = threading.Event()
    with serving((text("Hel"), lambda: released.wait(20)), HELLO) as server:
        command = [
            sys.executable,
            "-m",
            "inference_server.cli.main",
            "chat",
            "warm",
            "--base-url",
            server.url,
        ]
        master, slave = pty.openpty()
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        try:
            _read_until(master, ">>> ")
            os.write(master, b"Hi\n")
            _read_until(master, "Hel")
            process.send_signal(signal.SIGINT)
            _read_until(master, ">>> ")
            os.write(master, b"Go on\n")
            _read_until(master, ">>> ")
            os.write(master, b"\x04")
            assert process.wait(10) == 0
        finally:
            released.set()
            process.kill()
            process.wait()
            os.close(master)
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Hi", "Hel", "Go on"]


def _read_until(master: int, expected: str, timeout_s: float = 20.0) -> str:
    seen = ""
    end = time.monotonic() + timeout_s
    while expected not in seen:
        ready, _, _ = select.select([master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            pytest.fail(f"{expected!r} did not appear in {seen!r}")
        seen += os.read(master, 4096).decode("utf-8", "replace")
    return seen
