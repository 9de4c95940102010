from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny_models import FAMILIES, save_tiny_model


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint folder per family."""
    return save_tiny_model(request.param, tmp_path_factory.mktemp(f"tiny-{request.param}"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama one alone, for tests that need no second family."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("tiny-llama-alone"))
