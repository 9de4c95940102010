"""Replicas that leave, break, freeze or die behind both proxies: who is asked then, and what clients see."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rolling.conftest import TALKER, Replicas
from tests.rolling.load import Load, load
from tests.rolling.proxies import Proxy, proxies, slow_checks
from tests.server.test_faults import events, stream_body, until

BROKEN = "models: {talker: {source: 'scripted:?load_error=failed'}}\n"  # ready, as it loads on demand
OUT_AFTER_S = 4.0  # two checks of 1 s that nobody answers, and their pauses
NUM_CLIENTS = 3  # per proxy
MAX_REPEATED = (2_000_000, 60_000)  # bytes that Envoy and HAProxy can send a second time


def ask(proxy: Proxy, *, num_more_bytes: int = 0, timeout_s: float = 5) -> int:
    messages = [{"role": "user", "content": "hi"}]
    body: dict[str, Any] = {"messages": messages, "model": "talker", "max_tokens": 2}
    body["user"] = "x" * num_more_bytes
    return proxy.client.post("/v1/chat/completions", json=body, timeout=timeout_s).status_code


def loads(through: tuple[Proxy, ...], stack: ExitStack) -> list[Load]:
    return [stack.enter_context(load(proxy.url, num_askers=NUM_CLIENTS - 1)) for proxy in through]


def until_answered(clients: list[Load], num_answers: int) -> None:
    """So many more, by each proxy."""
    wanted = [one.num_answers + num_answers for one in clients]
    until(lambda: all(one.num_answers >= number for one, number in zip(clients, wanted, strict=True)))


def test_what_a_leaving_or_a_dead_replica_refuses_is_asked_of_another(
    replicas: Replicas, tmp_path: Path
) -> None:
    leaving, staying = replicas(TALKER, TALKER)
    with proxies(tmp_path, [leaving.port, staying.port], edit=slow_checks) as through:
        client = leaving.server.client
        with client.stream("POST", "/v1/chat/completions", json=stream_body("talker")) as response:
            received = events(response)
            next(received)  # while it goes on, the replica is there and refuses
            leaving.server.signal(signal.SIGTERM)
            until(lambda: leaving.server.chat("x", model="talker", max_tokens=1).status_code == 503)
            before = staying.num_served()
            for proxy in through:
                assert [ask(proxy) for _ in range(20)] == [200] * 20, proxy.name
            assert staying.num_served() == before + 40
            for proxy, size in zip(through, MAX_REPEATED, strict=True):
                assert [ask(proxy, num_more_bytes=size) for _ in range(6)] == [200] * 6, proxy.name
            next(received)
        leaving.kill()
        for proxy in through:
            assert [ask(proxy) for _ in range(20)] == [200] * 20, proxy.name


@pytest.mark.slow
def test_the_other_region_is_asked_as_far_as_this_one_lacks_replicas(
    replicas: Replicas, tmp_path: Path
) -> None:
    *here, elsewhere = replicas(TALKER, TALKER, TALKER)

    def share_elsewhere(proxy: Proxy) -> float:
        before = elsewhere.num_served()
        assert [ask(proxy) for _ in range(100)] == [200] * 100, proxy.name
        return (elsewhere.num_served() - before) / 100

    with proxies(tmp_path, [replica.port for replica in here], [elsewhere.port]) as through:
        envoy, haproxy = through
        assert (share_elsewhere(envoy), share_elsewhere(haproxy)) == (0, 0)
        here[0].kill()
        until(lambda: not any(proxy.is_up(here[0].port) for proxy in through))
        assert 0.1 < share_elsewhere(envoy) < 0.5  # 30 % by its rule: half are healthy, times 1.4
        assert share_elsewhere(haproxy) == 0
        here[1].kill()
        until(lambda: not any(proxy.is_up(here[1].port) for proxy in through))
        assert (share_elsewhere(envoy), share_elsewhere(haproxy)) == (1, 1)
        assert [proxy.client.get("/readyz").status_code for proxy in through] == [200, 200]
        elsewhere.kill()
        until(lambda: [proxy.client.get("/readyz").status_code for proxy in through] == [503, 503])
        for replica in (*here, elsewhere):
            replica.start()
        until(lambda: all(proxy.is_up(replica.port) for proxy in through for replica in here), timeout_s=30)
        elsewhere.wait_until_ready()
        assert (share_elsewhere(envoy), share_elsewhere(haproxy)) == (0, 0)


@pytest.mark.slow
def test_a_killed_replica_costs_at_most_what_it_was_working_on(replicas: Replicas, tmp_path: Path) -> None:
    killed, other = replicas(TALKER, TALKER)
    with proxies(tmp_path, [killed.port, other.port]) as through, ExitStack() as stack:
        clients = loads(through, stack)
        until_answered(clients, 50)
        killed.kill()
        until_answered(clients, 100)
        costs = [len(one.failures) for one in clients]
        until_answered(clients, 100)
        assert [len(one.failures) for one in clients] == costs
        assert max(costs) <= NUM_CLIENTS, [one.failures for one in clients]
        killed.start()
        killed.wait_until_ready()
        until(lambda: killed.num_served() > 20)


@pytest.mark.slow
def test_a_frozen_replica_is_passed_by_and_finishes_what_it_has_when_it_wakes(
    replicas: Replicas, tmp_path: Path
) -> None:
    frozen, other = replicas(TALKER, TALKER)
    with proxies(tmp_path, [frozen.port, other.port]) as through:
        with ExitStack() as stack:
            clients = loads(through, stack)
            until_answered(clients, 50)
            frozen.server.signal(signal.SIGSTOP)
            try:
                time.sleep(OUT_AFTER_S)  # real processes find it out in real time
                for proxy in through:
                    assert [ask(proxy, timeout_s=2) for _ in range(20)] == [200] * 20, proxy.name
            finally:
                frozen.server.signal(signal.SIGCONT)
        assert [one.failures for one in clients] == [[], []]


@pytest.mark.slow
def test_a_replica_that_answers_with_errors_alone_is_taken_out(replicas: Replicas, tmp_path: Path) -> None:
    broken, good = replicas(BROKEN, TALKER)
    with proxies(tmp_path, [broken.port, good.port]) as through:
        for proxy in through:
            statuses = [ask(proxy) for _ in range(60)]
            assert set(statuses) <= {200, 503}
            assert statuses.count(503) <= 10, proxy.name  # as both configurations say
            assert statuses[-20:] == [200] * 20, proxy.name
            # HAProxy asks another replica after any 503, Envoy only if the replica says that it is leaving.
            assert (503 in statuses) == (proxy.name == "envoy")
        assert httpx.get(f"{broken.server.url}/readyz").status_code == 200


def tight(text: str) -> str:
    """Either configuration, with room for two requests and no patience."""
    text = text.replace("max_requests: 2048", "max_requests: 2")
    return text.replace("maxconn 512", "maxconn 2").replace("timeout queue 30s", "timeout queue 300ms")


@pytest.mark.slow
def test_what_exceeds_the_limits_is_refused_soon_and_what_runs_goes_on(
    replicas: Replicas, tmp_path: Path
) -> None:
    (replica,) = replicas(TALKER)
    with proxies(tmp_path, [replica.port], edit=tight) as through:
        for proxy in through:
            with ExitStack() as stack:
                running = []
                for _ in range(2):
                    client = stack.enter_context(httpx.Client(base_url=proxy.url, timeout=20))
                    stream = client.stream("POST", "/v1/chat/completions", json=stream_body("talker"))
                    running.append(events(stack.enter_context(stream)))
                    next(running[-1])
                asked_s = time.monotonic()
                assert ask(proxy) == 503, proxy.name
                assert time.monotonic() - asked_s < 2
                assert all(next(stream) for stream in running)
            until(lambda proxy=proxy: ask(proxy) == 200)
