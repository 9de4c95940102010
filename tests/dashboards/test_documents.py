"""What the documents say to do can be done, and their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.dashboards.promql import CHART
from tests.fetched_tools import promtool

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "metrics.md", *sorted((DOCS / "runbooks").glob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)#]+)\)")


def test_prometheus_takes_the_configuration_of_the_document(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(.*?)```", (DOCS / "metrics.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(found[1], encoding="utf-8")
    shutil.copytree(CHART / "rules", tmp_path / "rules")
    checked = promtool("check", "config", str(configuration))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 rule files found" in checked.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for link in LINK.finditer(page.read_text("utf-8")):
        if "://" not in link["target"]:
            assert (page.parent / link["target"]).exists(), link["target"]
