"""For tests of Triton kernels, which `tests/conftest.py` has told to run on the CPU."""

from __future__ import annotations

import importlib.util

import pytest


def require_triton() -> None:
    """Skip the calling module or test where Triton is missing."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "Triton is not installed: pip install 'helixflow[gpu-tests]' runs these tests without a GPU",
            allow_module_level=True,
        )
