"""Whole renderings, so that a change of the templates shows what it changes.

`python -m tests.chart.test_golden` writes them anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.chart.helm import CHART, Helm
from tests.fetched_tools import fetched

FOLDER = Path(__file__).parent / "golden"
GOLDEN = {"cpu": CHART / "values-cpu.yaml", "inferencepool": CHART / "ci" / "inferencepool-values.yaml"}
# Copies of files that are tested elsewhere.
_COPIED = {"demo-helixflow-test", "demo-helixflow-models"}


def rendered(helm: Helm, values: Path) -> str:
    """The objects of a release, in helm's order, with sorted keys."""
    objects = [one for one in helm.release(values) if one["metadata"]["name"] not in _COPIED]
    return yaml.safe_dump_all(objects, width=110)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_rendering_is_as_it_was(helm: Helm, name: str) -> None:
    assert rendered(helm, GOLDEN[name]) == (FOLDER / f"{name}.yaml").read_text(), (
        "look at the difference; if it is meant, run `python -m tests.chart.test_golden`"
    )


def main() -> None:
    """Write the files."""
    tools = fetched("fetch_chart_tools.py")
    for name, values in GOLDEN.items():
        (FOLDER / f"{name}.yaml").write_text(rendered(Helm(tools / "bin" / "helm-4"), values))


if __name__ == "__main__":
    main()
