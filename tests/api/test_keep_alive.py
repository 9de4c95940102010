"""How long a model stays after a request: what clients may write, and who may decide how much."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from inference_server.api.keep_alive import FOR_EVER_S, MAX_LENT_S, lent_keep_alive, parse_keep_alive
from inference_server.config.catalog import ModelSpec
from inference_server.errors import InvalidRequest
from tests.api.server import Server, run
from tests.generation.fakes import until

DEMO = ModelSpec(name="demo", source="scripted", max_model_len=256, keep_alive_s=600.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("600", 600.0),
        (600, 600.0),
        (0.5, 0.5),
        (0, 0.0),
        ("0", 0.0),
        (-1, FOR_EVER_S),
        ("-1", FOR_EVER_S),
        (-5, FOR_EVER_S),
    ],
)
def test_every_form_that_ollamas_clients_send_is_understood(
    value: float | str | None, seconds: float | None
) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["soon", "", "10 parsecs", 1e12, "99999999999d"])
def test_what_is_no_duration_is_refused_by_name(value: float | str) -> None:
    with pytest.raises(InvalidRequest, match="keep_alive") as caught:
        parse_keep_alive(value)
    assert caught.value.param == "keep_alive"


def test_a_lent_stay_is_never_shorter_than_the_models_own_nor_endless() -> None:
    wanted = (None, FOR_EVER_S, 0.0, 5.0, 600.0, 7200.0, 1e6, 1e8)
    own = (None, 0.0, 600.0, MAX_LENT_S, 1e7)
    for wanted_s, own_s in itertools.product(wanted, own):
        lent_s = lent_keep_alive(wanted_s, own_s)
        if wanted_s is None or own_s is None:
            assert lent_s is None  # as the entry says
        else:
            assert lent_s is not None
            assert own_s <= lent_s <= max(own_s, MAX_LENT_S)
            if own_s <= wanted_s <= MAX_LENT_S:
                assert lent_s == wanted_s


@pytest.mark.parametrize(
    ("key", "keep_alive", "expected_s"),
    [
        ("main", "1h", 3600.0),
        ("main", -1, None),
        ("asker", "1h", 3600.0),
        ("asker", -1, 24 * 3600.0),
        ("asker", 0, 600.0),
        ("asker", None, 600.0),
    ],
)
def test_a_request_decides_how_long_its_model_stays_within_what_its_key_may(
    tmp_path: Path, key: str, keep_alive: float | str | None, expected_s: float | None
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=DEMO, api_key="main", inference_api_key="asker")
        for path in ("/v1/chat/completions", "/v1/completions"):
            body = {"model": "demo", "keep_alive": keep_alive, "max_tokens": 1}
            body |= (
                {"prompt": "x"}
                if path == "/v1/completions"
                else {"messages": [{"role": "user", "content": "x"}]}
            )
            response = await server.client.post(path, json=body, headers={"x-api-key": key})
            assert response.status_code == 200, response.text
            left_s = server.manager.status("demo").expires_in_s
            assert left_s == (None if expected_s is None else pytest.approx(expected_s, abs=5))

    run(scenario())


def test_the_main_key_may_unload_with_the_last_byte(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=DEMO, api_key="main")
        response = await server.chat(keep_alive=0, headers={"x-api-key": "main"})
        assert response.status_code == 200
        await until(lambda: server.manager.status("demo").state == "unloaded")

    run(scenario())


def test_a_load_by_request_may_say_how_long_it_is_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=DEMO)
        body = {"model": "demo", "keep_alive": "2h"}
        assert (await server.client.post("/models/load", json=body)).json() == {"success": True}
        assert server.manager.status("demo").expires_in_s == pytest.approx(7200, abs=5)
        refused = await server.client.post("/models/load", json={"model": "demo", "keep_alive": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "keep_alive")

    run(scenario())
