"""Two replicas behind Envoy and HAProxy are restarted in turn under load, and no client notices."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.rolling.conftest import TALKER, Replicas
from tests.rolling.load import load
from tests.rolling.proxies import envoy, haproxy
from tests.rolling.replicas import Replica


def wait_until_it_is_asked(replica: Replica, num_requests: int = 10) -> None:
    """Both proxies have found it again."""
    deadline_s = time.monotonic() + 10
    while replica.num_served() < num_requests:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "num_rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_a_rolling_restart_fails_no_request(replicas: Replicas, tmp_path: Path, num_rounds: int) -> None:
    pair = replicas(TALKER, TALKER)
    ports = [replica.port for replica in pair]
    ends_s: list[float] = []
    with envoy(tmp_path, ports) as first, haproxy(tmp_path, ports) as second:
        with load(first.url) as through_envoy, load(second.url) as through_haproxy:
            for _ in range(num_rounds):
                for replica in pair:
                    ends_s.append(replica.restart())
                    wait_until_it_is_asked(replica)
    assert through_envoy.failures == []
    assert through_haproxy.failures == []
    for clients in (through_envoy, through_haproxy):
        assert clients.num_answers > 20 * num_rounds
        assert clients.num_streams > 10 * num_rounds
    assert max(ends_s) < 10
    print(
        f"{num_rounds} rounds, 2 replicas: {through_envoy.num_answers} answers and {through_envoy.num_streams} "
        f"streams through Envoy, {through_haproxy.num_answers} and {through_haproxy.num_streams} through "
        f"HAProxy, none failed; SIGTERM to exit {min(ends_s):.2f} to {max(ends_s):.2f} s"
    )
