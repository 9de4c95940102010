"""Prometheus and promtool for tests, fetched by the repository's own script; without them a test skips."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch_prometheus.py"


@functools.cache
def _fetch() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)


def tool(name: str) -> Path:
    """The path of `prometheus` or `promtool`."""
    fetched = _fetch()
    if fetched.returncode:
        pytest.skip(fetched.stderr.strip())
    return Path(fetched.stdout.strip()) / name


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end; `given` is its standard input."""
    command = [str(tool("promtool")), *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
