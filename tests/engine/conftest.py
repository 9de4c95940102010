from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny_models import FAMILIES, NATIVE_FAMILIES, save_tiny_model

TORCH = [("torch", family) for family in sorted(FAMILIES)]
NATIVE = [("native", family) for family in sorted(NATIVE_FAMILIES)]


@pytest.fixture(scope="session", params=TORCH + NATIVE, ids="-".join)
def kernels_and_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Which kernels compute it, and one checkpoint folder per family that they compute."""
    kernels, family = request.param
    folder = tmp_path_factory.mktemp(f"tiny-{kernels}-{family}")
    return kernels, save_tiny_model(family, folder, native=kernels == "native")


@pytest.fixture(scope="session")
def tiny_model(kernels_and_model: tuple[str, Path]) -> Path:
    """The checkpoint folder of `kernels_and_model`."""
    return kernels_and_model[1]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama one alone, for tests that need no second family."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("tiny-llama-alone"))
