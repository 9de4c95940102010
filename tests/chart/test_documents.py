"""What an operator reads: the table of values, and the notes after an installation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts.chart_documents import document, rows
from tests.chart.helm import CHART, REPOSITORY, Helm

SOURCE = (CHART / "values.yaml").read_text(encoding="utf-8")


def test_the_table_of_values_is_up_to_date() -> None:
    written = (CHART / "README.md").read_text(encoding="utf-8")
    assert written == document(), "run `python scripts/chart_documents.py`"


def test_every_value_is_explained_at_its_own_place_or_above() -> None:
    places = [row.place for row in rows(SOURCE)]
    assert len(set(places)) == len(places)
    assert all(row.text.endswith(".") for row in rows(SOURCE))
    for place in _leaves(yaml.safe_load(SOURCE)):
        assert any(f"{place}.".startswith(f"{explained}.") for explained in places), place


def _leaves(values: Any, place: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def test_a_comment_of_several_lines_is_one_row_and_others_are_none() -> None:
    source = "# Not one.\na:\n  # -- First\n  # and second.\n  b: {c: [1]}\n# Lost.\nd: 2\n"
    assert [tuple(row) for row in rows(source)] == [("a.b", '`{"c": [1]}`', "First and second.")]


def test_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    (version,) = re.findall(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert chart["appVersion"] == version


PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_values_that_the_operations_page_shows_are_taken(helm: Helm, block: str) -> None:
    assert helm.release(**yaml.safe_load(block)).one("Deployment")


def test_places_that_the_operations_page_names_are_values() -> None:
    values = yaml.safe_load(SOURCE)
    named = set(re.findall(r"`([a-z][A-Za-z]*(?:\.[A-Za-z]+)+)[`:]", PAGE)) - {"models.yaml"}
    assert len(named) > 8
    for place in named:
        inner = values
        for name in place.split("."):
            inner = inner[name]


def test_links_of_the_operations_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) > 3
    assert all((REPOSITORY / "docs" / link.partition("#")[0]).exists() for link in links)


def test_notes_say_how_to_make_the_key_and_ask(helm: Helm) -> None:
    notes = helm.notes()
    assert "create secret generic helixflow-api-key" in notes
    assert """go-template='{{index .data "api-key" | base64decode}}'""" in notes
    assert "port-forward service/demo-helixflow 8000:80" in notes
    assert "helm test demo -n models" in notes
    assert "small demo model" in notes
    assert "WARNING" not in notes


def test_notes_warn_of_what_is_open_or_unused(helm: Helm) -> None:
    open_ = helm.notes(auth={"insecure": True})
    assert "WARNING: auth.insecure is set" in open_
    assert "secret" not in open_
    both = helm.notes(config={"models": {"a": {"source": "scripted"}}}, existingConfigMap="mine")
    assert "WARNING: existingConfigMap is set" in both
    assert "small demo model" not in both
