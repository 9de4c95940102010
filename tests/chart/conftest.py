"""The fetched tools and helm, once per run. Without them tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.helm import VALUES_FILES, Helm, Releases
from tests.fetched_tools import fetched


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of `scripts/fetch_chart_tools.py`."""
    return fetched("fetch_chart_tools.py")


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The program checkov."""
    return fetched("fetch_chart_tools.py", "checkov") / "bin" / "checkov"


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
