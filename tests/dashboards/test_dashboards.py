"""The dashboards' files: made by the script, with variables for everything that is somebody's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.dashboards.__main__ import DASHBOARDS as MADE
from scripts.dashboards.__main__ import text
from scripts.dashboards.grafana import WIDTH
from tests.dashboards.promql import DASHBOARDS, panels

EACH = pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)


def test_the_files_are_what_the_script_makes() -> None:
    made = {name: text(make()) for name, make in MADE.items()}
    assert {file.name: file.read_text("utf-8") for file in DASHBOARDS} == made, (
        "run python -m scripts.dashboards"
    )


@EACH
def test_every_query_goes_to_the_chosen_prometheus_and_only_to_chosen_servers(file: Path) -> None:
    for panel in panels(file):
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert '=~"$job"' in target["expr"] or "ALERTS" in target["expr"], panel["title"]


@EACH
def test_ids_and_titles_are_unique_and_panels_do_not_overlap(file: Path) -> None:
    dashboard = json.loads(file.read_text("utf-8"))
    shown = panels(file)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({panel["title"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < WIDTH
        assert not cells & taken, panel["title"]
        taken |= cells


@EACH
def test_a_dashboard_can_be_narrowed_to_a_model(file: Path) -> None:
    dashboard = json.loads(file.read_text("utf-8"))
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "job",
        "model",
    ]
    assert any('=~"$model"' in target["expr"] for panel in panels(file) for target in panel["targets"])


def test_no_two_dashboards_share_an_id() -> None:
    uids = [json.loads(file.read_text("utf-8"))["uid"] for file in DASHBOARDS]
    assert len(set(uids)) == len(uids) == 3
