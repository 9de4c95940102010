"""What the fork server imports before it forks, and what it must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from inference_server.worker import forkserver
problem = forkserver._preload()
assert problem is None, problem
assert "triton" not in sys.modules
import triton
assert triton.__version__ == "0.0"
from torch.utils._triton import has_triton_package
assert has_triton_package()
"""


def test_triton_is_left_to_the_children_where_torch_would_import_it(tmp_path: Path) -> None:
    package = tmp_path / "triton"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0.0"\n')
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}",
        # A library's thread pool would make the fork unsafe: the launcher sees to that for the real one.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
