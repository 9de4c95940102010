"""Lets Triton's kernels run on the CPU: its interpreter must be chosen before the kernels are imported."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

KERNELS = "inference_server.execution.triton_kernels"


def require_interpreter() -> None:
    """Skip the calling module where Triton is missing; otherwise make its kernels run on the CPU."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "Triton is not installed: pip install 'helixflow[gpu-tests]' runs these tests without a GPU",
            allow_module_level=True,
        )
    compiled = any(name.startswith(KERNELS + ".") for name in sys.modules)
    if compiled and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's kernels were imported for a GPU already", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
