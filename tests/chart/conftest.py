"""The fetched tools and helm, once per run. Without them tests are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.helm import REPOSITORY, VALUES_FILES, Helm, Releases


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of `scripts/fetch_chart_tools.py`."""
    return _fetched()


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The program checkov."""
    return _fetched("checkov") / "bin" / "checkov"


def _fetched(*arguments: str) -> Path:
    """What the script fetched; REQUIRE_TEST_TOOLS=1 forbids to skip."""
    script = REPOSITORY / "scripts" / "fetch_chart_tools.py"
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Path(done.stdout.splitlines()[-1])
    reason = f"{script.name} failed: {done.stderr.strip()[-400:]}"
    if os.environ.get("REQUIRE_TEST_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def helm(tools: Path) -> Helm:
    """Helm 4."""
    return Helm(tools / "bin" / "helm-4")


@pytest.fixture(scope="session")
def helm_3(tools: Path) -> Helm:
    """Helm 3."""
    return Helm(tools / "bin" / "helm-3")


@pytest.fixture(scope="session")
def releases(helm: Helm) -> Releases:
    """What every values file comes to, by its name without `-values.yaml`; not to be changed."""
    return {
        file.stem.removesuffix("-values").removeprefix("values-"): helm.release(file) for file in VALUES_FILES
    }
