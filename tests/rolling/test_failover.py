"""Replicas that leave, break, freeze or die behind the proxies: who is asked then, and what clients notice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rolling.conftest import TALKER, Replicas
from tests.rolling.load import load
from tests.rolling.proxies import Proxy, envoy, haproxy
from tests.server.test_faults import events, stream_body, until

BROKEN = "models: {talker: {source: 'scripted:?load_error=failed'}}\n"  # ready, as it loads on demand
OUT_AFTER_S = 4.0  # two checks of 1 s that nobody answers, and their pauses

ProxyOf = Callable[..., AbstractContextManager[Proxy]]
both = pytest.mark.parametrize("proxy_of", [envoy, haproxy], ids=["envoy", "haproxy"])


def ask(proxy: Proxy, timeout_s: float = 5) -> httpx.Response:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "talker",
        "max_tokens": 2,
    }
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=timeout_s)


@both
def test_what_a_leaving_replica_refuses_is_asked_of_another(
    replicas: Replicas, tmp_path: Path, proxy_of: ProxyOf
) -> None:
    leaving, staying = replicas(TALKER, TALKER)
    with proxy_of(tmp_path, [leaving.port, staying.port], slow_checks=True) as proxy:
        client = leaving.server.client
        with client.stream("POST", "/v1/chat/completions", json=stream_body("talker")) as response:
            next(events(response))  # keeps it draining
            leaving.server.signal(signal.SIGTERM)
            until(lambda: leaving.server.chat("x", model="talker", max_tokens=1).status_code == 503)
            before = staying.num_served()
            for _ in range(30):
                assert ask(proxy).status_code == 200
            assert staying.num_served() == before + 30


@pytest.mark.slow
@both
def test_the_other_region_is_asked_while_this_one_has_no_replica(
    replicas: Replicas, tmp_path: Path, proxy_of: ProxyOf
) -> None:
    here, elsewhere = replicas(TALKER, TALKER)
    with proxy_of(tmp_path, [here.port], [elsewhere.port]) as proxy:
        for _ in range(20):
            assert ask(proxy).status_code == 200
        assert (here.num_served(), elsewhere.num_served()) == (20, 0)
        here.kill()
        until(lambda: ask(proxy).status_code == 200, timeout_s=OUT_AFTER_S)
        for _ in range(20):
            assert ask(proxy).status_code == 200
        here.start()
        here.wait_until_ready()
        until(lambda: ask(proxy).status_code == 200 and here.num_served() > 0)
        away = elsewhere.num_served()
        for _ in range(20):
            assert ask(proxy).status_code == 200
        assert elsewhere.num_served() == away


@pytest.mark.slow
@both
def test_a_killed_replica_costs_at_most_what_it_was_working_on(
    replicas: Replicas, tmp_path: Path, proxy_of: ProxyOf
) -> None:
    killed, other = replicas(TALKER, TALKER)
    with proxy_of(tmp_path, [killed.port, other.port]) as proxy:
        with load(proxy.url, num_askers=3, num_streamers=1) as clients:
            until(lambda: clients.num_answers > 50)
            killed.kill()
            until(lambda: clients.num_answers > 150)
            cost = len(clients.failures)
            before = clients.num_answers
            until(lambda: clients.num_answers > before + 100)
            assert len(clients.failures) == cost
        assert cost <= 4, clients.failures
        killed.start()
        killed.wait_until_ready()
        until(lambda: ask(proxy).status_code == 200 and killed.num_served() > 0)


@pytest.mark.slow
@both
def test_a_frozen_replica_is_passed_by_and_finishes_what_it_has_when_it_wakes(
    replicas: Replicas, tmp_path: Path, proxy_of: ProxyOf
) -> None:
    frozen, other = replicas(TALKER, TALKER)
    with proxy_of(tmp_path, [frozen.port, other.port]) as proxy:
        with load(proxy.url, num_askers=3, num_streamers=1) as clients:
            until(lambda: clients.num_answers > 50)
            frozen.server.signal(signal.SIGSTOP)
            try:
                time.sleep(OUT_AFTER_S)
                for _ in range(30):
                    assert ask(proxy, timeout_s=1).status_code == 200
            finally:
                frozen.server.signal(signal.SIGCONT)
        assert clients.failures == []


@pytest.mark.slow
@both
def test_a_replica_that_answers_with_errors_alone_is_taken_out(
    replicas: Replicas, tmp_path: Path, proxy_of: ProxyOf
) -> None:
    broken, good = replicas(BROKEN, TALKER)
    with proxy_of(tmp_path, [broken.port, good.port]) as proxy:
        statuses = [ask(proxy).status_code for _ in range(60)]
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) <= 10  # as both configurations say
        assert statuses[-20:] == [200] * 20
        # HAProxy asks another replica after a 503, Envoy only after one that leaves.
        assert (503 in statuses) == (proxy.name == "envoy")
        assert httpx.get(f"{broken.server.url}/readyz").status_code == 200
