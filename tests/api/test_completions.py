"""Completions in OpenAI's older shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.server import Server, events, run


def test_a_completion_has_openais_shape_and_its_short_default(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).reply = b"0123456789abcdefghij"
        body = (await server.complete()).json()
        assert body["id"].startswith("cmpl-")
        assert body["object"] == "text_completion"
        assert body["choices"] == [
            {
                "index": 0,
                "text": "0123456789abcdef",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ]
        assert body["usage"]["total_tokens"] == 18

    run(scenario())


@pytest.mark.parametrize(
    ("prompt", "num_choices", "num_prompt_tokens"),
    [
        ("hi", 1, 2),
        ([104, 105], 1, 2),
        (["hi", "there"], 2, 7),
        ([[104], [105, 106]], 2, 3),
        (["hi", [104]], 2, 3),
    ],
)
def test_every_form_of_prompt_is_served(
    tmp_path: Path, prompt: Any, num_choices: int, num_prompt_tokens: int
) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).complete(prompt=prompt, max_tokens=5)).json()
        assert [choice["index"] for choice in body["choices"]] == list(range(num_choices))
        assert {choice["text"] for choice in body["choices"]} == {"Hello"}
        assert body["usage"]["prompt_tokens"] == num_prompt_tokens
        assert body["usage"]["completion_tokens"] == 5 * num_choices

    run(scenario())


def test_a_stream_of_two_prompts_tells_which_text_is_whose(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).complete(
            prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
        )
        *chunks, usage, done = events(response.text)
        assert done == "[DONE]"
        assert usage["usage"]["completion_tokens"] == 28
        for index in (0, 1):
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert "".join(choice["text"] for choice in own) == "Hello, world."
            assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]

    run(scenario())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""), ("prompt", [""]), ("prompt", [[]]), ("prompt", [300]), ("prompt", [-1]),
        ("prompt", ["a"] * 65), ("prompt", [2**70]), ("prompt", [True]),
        ("echo", 1), ("best_of", 9), ("best_of", 0), ("suffix", "x"), ("logprobs", -1), ("logprobs", 21),
        ("logprobs", True), ("n", 9), ("messages", []), ("prompt_logprobs", 21), ("prompt_logprobs", -1),
        ("max_tokens", 0), ("logit_bias", {"260": 1}), ("allowed_token_ids", [260]),
        ("allowed_token_ids", []),
    ],
)  # fmt: skip
def test_what_is_not_served_is_a_400_that_names_the_field(tmp_path: Path, name: str, value: Any) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).complete(**{name: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name

    run(scenario())


def test_requests_with_room_for_only_some_prompts_are_refused_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, max_num_seqs=2, max_num_queued_reqs=1)
        response = await server.complete(prompt=["a"] * 4)
        assert (response.status_code, "at most 3 at once" in response.text) == (400, True)
        with server.door._admission.admitted("demo"):
            response = await server.complete(prompt=["a"] * 3)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert (await server.complete(prompt=["a"] * 3)).status_code == 200

    run(scenario())
