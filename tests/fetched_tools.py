"""Programs that tests need and nobody installs, fetched by the scripts; without them a test skips."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def fetched(script: str, *arguments: str) -> Path:
    """The folder that a script prints."""
    done = _fetch(script, *arguments)
    if done.returncode:
        cannot_be_had(f"{script} failed: {done.stderr.strip()[-400:]}")
    return Path(done.stdout.splitlines()[-1])


def cannot_be_had(reason: str) -> NoReturn:
    """Skip the test; under REQUIRE_TEST_TOOLS=1 it fails."""
    if os.environ.get("REQUIRE_TEST_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache  # also that they cannot be had, which may take long to find out
def _fetch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def prometheus_program(name: str) -> Path:
    """The path of `prometheus` or `promtool`."""
    return fetched("fetch_prometheus.py") / name


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end; `given` is its standard input."""
    command = [str(prometheus_program("promtool")), *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
