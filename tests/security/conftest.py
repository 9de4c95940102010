"""A server to attack. Whatever a test does to it, it lives, answers the next request and has not grown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.wire import chat
from tests.server.running import RunningServer, resident_megabytes, running_server

MAX_GROWTH_MB = 10
CONFIG = """
server:
  header_timeout: 1.5
  body_timeout: 2
  send_timeout: 1.5
models:
  m: {source: 'scripted:?output_tokens=4', preload: true, max_model_len: 4096}
  endless: {source: 'scripted:?output_tokens=30000&step_ms=1&reply=%s', max_model_len: 32768}
"""


@pytest.fixture(scope="package")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With one small scripted model, one that talks without end, and short limits; warmed up."""
    config = tmp_path_factory.mktemp("attacked") / "models.yaml"
    config.write_text(CONFIG % ("word%20" * 40), encoding="utf-8")
    with running_server(config) as server:
        for _ in range(50):
            assert server.client.post("/v1/chat/completions", json=chat()).status_code == 200
        yield server


@pytest.fixture
def server(one_server: RunningServer) -> Iterator[RunningServer]:
    """The same server for every test; afterwards it is asked how it is."""
    before = resident_megabytes(one_server.process.pid)
    yield one_server
    assert one_server.process.poll() is None, one_server.log
    response = one_server.client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 200, response.text
    assert resident_megabytes(one_server.process.pid) - before <= MAX_GROWTH_MB
    assert "Traceback" not in one_server.log, one_server.log
