from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dashboards.load import used_server
from tests.server.running import RunningServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has lived a little, shared by tests that only ask."""
    with used_server(tmp_path_factory.mktemp("used-server")) as running:
        yield running


@pytest.fixture(scope="session")
def page(server: RunningServer) -> str:
    """Its metrics."""
    return server.client.get("/metrics").text
