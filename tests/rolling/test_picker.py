"""Envoy with an endpoint picker: requests go to the replica that already holds their model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.rolling.conftest import Replicas
from tests.rolling.picker import Load, pick, picking, read_page
from tests.rolling.proxies import ENVOY_CONFIG, PICKER_CONFIG, Proxy, envoy
from tests.rolling.replicas import Replica
from tests.rolling.wire import MAX_CHUNK_BYTES, body_as_it_was, fields
from tests.server.running import free_port

MODELS = """
models:
  one: {source: 'scripted:?output_tokens=3&step_ms=1'}
  two: {source: 'scripted:?output_tokens=3&step_ms=1', aliases: [zwei]}
  slow: {source: 'scripted:?output_tokens=3&step_ms=1&load_ms=1500'}
"""
PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 2
vllm:num_requests_waiting 1
vllm:kv_cache_usage_perc 0.25
vllm:lora_requests_info{max_lora="3",running_lora_adapters="one,eins",waiting_lora_adapters=""} 1.5
"""
loads = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.builds(
        Load,
        num_requests=st.integers(0, 5),
        running=st.frozensets(st.sampled_from(["one", "two", "three"])),
        waiting=st.frozensets(st.sampled_from(["one", "two", "three"])),
        max_models=st.integers(0, 3),
    ),
)


def test_a_page_is_read() -> None:
    assert read_page(PAGE) == Load(3, frozenset({"one", "eins"}), frozenset(), 3)


@given(loads)
def test_a_replica_that_holds_the_model_comes_before_one_that_does_not(found: dict[str, Load]) -> None:
    picked = pick("one", found)
    assert (picked is None) == (not found)
    holders = {name: load for name, load in found.items() if "one" in load.running}
    if picked is not None and holders:
        assert picked in holders
        assert found[picked].num_requests == min(load.num_requests for load in holders.values())


@given(st.binary(max_size=20))
def test_a_body_goes_on_as_it_came(piece: bytes) -> None:
    body = piece * (2 * MAX_CHUNK_BYTES // max(1, len(piece)))
    assert b"".join(streamed(message) for message in body_as_it_was(body)) == body


def streamed(message: bytes) -> bytes:
    """The piece inside an answer; four messages are around it."""
    for number in (3, 1, 3, 3):
        inner = dict(fields(message))[number]
        assert isinstance(inner, bytes)
        message = inner
    found = dict(fields(message)).get(1, b"")
    assert isinstance(found, bytes)
    return found


def test_the_two_configurations_of_envoy_differ_in_the_picker_alone() -> None:
    plain, picked = (yaml.safe_load(path.read_text("utf-8")) for path in (ENVOY_CONFIG, PICKER_CONFIG))
    filters = picked["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    asked = [f for f in filters["http_filters"] if f["name"] != "envoy.filters.http.ext_proc"]
    assert len(asked) == len(filters["http_filters"]) - 1
    filters["http_filters"] = asked
    replicas, _ = picked["static_resources"]["clusters"]
    policy = replicas.pop("load_balancing_policy")["policies"][0]["typed_extension_config"]["typed_config"]
    (fallback,) = policy["fallback_policy"]["policies"]
    assert fallback["typed_extension_config"]["name"].endswith(".least_request")
    replicas["lb_policy"] = "LEAST_REQUEST"
    picked["static_resources"]["clusters"] = [replicas]
    assert picked == plain


# ---------------------------------------------------------------- real processes


@pytest.fixture
def pair(replicas: Replicas) -> list[Replica]:
    """One replica holds the first model, the other the second."""
    pair = replicas(MODELS, MODELS)
    for replica, model in zip(pair, ("one", "two"), strict=True):
        assert replica.server.client.post("/models/load", json={"model": model}).status_code == 200
    return pair


@pytest.fixture
def proxy(pair: list[Replica], tmp_path: Path) -> Iterator[Proxy]:
    ports = [replica.port for replica in pair]
    with (
        picking([f"127.0.0.1:{port}" for port in ports]) as port,
        envoy(tmp_path, ports, config=PICKER_CONFIG, picker=port) as proxy,
    ):
        yield proxy


def ask(proxy: Proxy, model: str, *, num_more_bytes: int = 0, **headers: str) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "messages": messages, "user": "x" * num_more_bytes}
    return proxy.client.post("/v1/chat/completions", json=body, headers=headers)


def epp(replica: Replica) -> str:
    return replica.server.client.get("/metrics/epp").text


def in_memory(replica: Replica) -> set[str]:
    models = replica.server.client.get("/models").json()["data"]
    return {model["id"] for model in models if model["status"] == "loaded"}


def test_requests_go_to_the_replica_that_holds_their_model_and_to_another_when_it_is_gone(
    pair: list[Replica], proxy: Proxy
) -> None:
    first, second = pair
    for _ in range(10):
        assert ask(proxy, "one").status_code == 200
    for _ in range(15):
        assert ask(proxy, "zwei").status_code == 200
    # A client cannot choose, and a body of many pieces arrives whole.
    lure = {"x-gateway-destination-endpoint": f"127.0.0.1:{first.port}"}
    assert ask(proxy, "two", num_more_bytes=10 * MAX_CHUNK_BYTES, **lure).status_code == 200
    assert ask(proxy, "nope").status_code == 404
    assert (first.num_served(), second.num_served()) == (10, 16)
    assert (in_memory(first), in_memory(second)) == ({"one"}, {"two"})
    first.kill()
    assert ask(proxy, "one").status_code == 200
    assert in_memory(second) == {"one", "two"}


def test_requests_follow_a_load_and_a_model_that_was_put_away_is_forgotten(
    pair: list[Replica], proxy: Proxy
) -> None:
    first, second = pair
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, proxy, "slow")]
        while not any('waiting_lora_adapters="slow"' in epp(replica) for replica in pair):
            time.sleep(0.01)
        answers += [pool.submit(ask, proxy, "slow") for _ in range(3)]
        assert {answer.result().status_code for answer in answers} == {200}
    (holder,) = [replica for replica in pair if "slow" in in_memory(replica)]  # it was loaded once
    other = second if holder is first else first
    for model in in_memory(holder):
        assert holder.server.client.post("/models/unload", json={"model": model}).status_code == 200
    assert other.server.client.post("/models/load", json={"model": "slow"}).status_code == 200
    assert ask(proxy, "slow").status_code == 200
    assert in_memory(holder) == set()


@pytest.mark.slow
def test_where_the_picker_names_a_replica_that_is_not_there_another_is_asked(
    replicas: Replicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (replica,) = replicas(MODELS)
    monkeypatch.setattr("tests.rolling.picker.pick", lambda model, loads: f"127.0.0.1:{free_port()}")
    with (
        picking([f"127.0.0.1:{replica.port}"]) as port,
        envoy(tmp_path, [replica.port], config=PICKER_CONFIG, picker=port) as proxy,
    ):
        assert ask(proxy, "one").status_code == 200


def test_without_its_picker_envoy_refuses_at_once(replicas: Replicas, tmp_path: Path) -> None:
    (replica,) = replicas(MODELS)
    with envoy(tmp_path, [replica.port], config=PICKER_CONFIG, picker=free_port()) as proxy:
        asked_s = time.monotonic()
        assert ask(proxy, "one").status_code == 503
        assert time.monotonic() - asked_s < 3
    assert replica.num_served() == 0
