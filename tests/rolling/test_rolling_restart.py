"""Two replicas behind Envoy and HAProxy are restarted in turn under load, and no client notices."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.rolling.conftest import TALKER, Replicas
from tests.rolling.load import load
from tests.rolling.proxies import proxies
from tests.server.test_faults import until

logger = logging.getLogger(__name__)  # --log-cli-level=INFO shows the figures


TWENTY = pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])


@pytest.mark.parametrize("num_rounds", [1, TWENTY])
def test_a_rolling_restart_fails_no_request(replicas: Replicas, tmp_path: Path, num_rounds: int) -> None:
    pair = replicas(TALKER, TALKER)
    ports = [replica.port for replica in pair]
    ends_s: list[float] = []
    with (
        proxies(tmp_path, ports) as (first, second),
        load(first.url) as through_envoy,
        load(second.url) as through_haproxy,
    ):
        for _ in range(num_rounds):
            for replica in pair:
                ends_s.append(replica.restart())
                until(lambda port=replica.port: first.is_up(port) and second.is_up(port))
    for name, clients in (("Envoy", through_envoy), ("HAProxy", through_haproxy)):
        logger.info(
            "%d rounds, %s: %d answers, %d streams, %d failures",
            *(num_rounds, name, clients.num_answers, clients.num_streams, len(clients.failures)),
        )
        assert clients.failures == []
        assert clients.num_answers > 20 * num_rounds
        assert clients.num_streams > 10 * num_rounds
    logger.info("from SIGTERM to exit: %.2f to %.2f s", min(ends_s), max(ends_s))
    assert max(ends_s) < 10
