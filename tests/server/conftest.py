from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo import DEMO_MODEL, demo_folder
from tests.server.running import RunningServer, running_server

DEMO_CONFIG = """
models:
  {name}:
    source: {folder}
    aliases: [gpt-3.5-turbo]
    preload: true
    dtype: float32
    max_model_len: 2048
    kv_cache: {{tokens: 16384}}
"""

WriteConfig = Callable[[str], Path]


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Writes a models.yaml for one test."""

    def write(text: str) -> Path:
        path = tmp_path / "models.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server with the demo model in float32, shared by tests that leave it whole."""
    config = tmp_path_factory.mktemp("demo-server") / "models.yaml"
    config.write_text(DEMO_CONFIG.format(name=DEMO_MODEL, folder=demo_folder()), encoding="utf-8")
    with running_server(config) as server:
        yield server
