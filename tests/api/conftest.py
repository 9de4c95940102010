from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.running import RunningServer, running_server

MODELS = """
models:
  talker:
    source: scripted:?output_tokens=8
    aliases: [alias-of-talker]
    preload: true
    max_model_len: 512
    defaults: {max_tokens: 6}
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server with a scripted model, shared by tests that leave it whole."""
    config = tmp_path_factory.mktemp("api") / "models.yaml"
    config.write_text(MODELS, encoding="utf-8")
    with running_server(config) as running:
        yield running


@pytest.fixture(scope="session")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The same with an API key."""
    config = tmp_path_factory.mktemp("api-key") / "models.yaml"
    config.write_text(MODELS, encoding="utf-8")
    with running_server(config, env={"HELIXFLOW_API_KEY": "secret-key"}) as running:
        yield running
