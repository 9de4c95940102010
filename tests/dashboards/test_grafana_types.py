"""The dashboards fit Grafana's own types, of versions 10 and 12, as the TypeScript compiler sees them.

The types come from npm by a lock file with checksums, into the tools' cache folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.fetching import tools_root
from tests.dashboards.promql import DASHBOARDS
from tests.fetched_tools import cannot_be_had

pytestmark = pytest.mark.slow

PACKAGES = Path(__file__).parent / "grafana"
VERSIONS = ("10", "12")
PANELS = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "stat": "stat/panelcfg/x/StatPanelCfg_types.gen",
    "heatmap": "heatmap/panelcfg/x/HeatmapPanelCfg_types.gen",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen",
}
# Fields may be left out (Grafana has defaults), and JSON has strings where TypeScript has enums.
LOOSE = """
type Loose<T> = T extends string ? string : T extends number ? number : T extends boolean ? boolean
  : T extends (infer U)[] ? Loose<U>[] : T extends object ? { [K in keyof T]?: Loose<T[K]> } : T;
"""
UNTYPED = {"definition"}  # of a variable; Grafana writes it itself, its types do not know it


@pytest.fixture(scope="module")
def modules() -> Path:
    """A folder with the types and the compiler."""
    if shutil.which("npm") is None:
        cannot_be_had("Grafana's types need npm")
    lock = (PACKAGES / "package-lock.json").read_bytes()
    folder = tools_root() / f"grafana-types-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        shutil.copytree(PACKAGES, folder, dirs_exist_ok=True)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            fetched = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=140
            )
        except subprocess.TimeoutExpired:
            cannot_be_had("Grafana's types could not be fetched in time")
        if fetched.returncode:
            cannot_be_had(f"Grafana's types cannot be had: {fetched.stderr.strip()[-400:]}")
        (folder / "complete").touch()
    return folder


def without_untyped(dashboard: dict[str, Any]) -> dict[str, Any]:
    """As the types know it."""
    variables = dashboard["templating"]["list"]
    known = [{key: variable[key] for key in variable if key not in UNTYPED} for variable in variables]
    return {**dashboard, "templating": {"list": known}}


def typed(dashboard: dict[str, Any]) -> Iterator[str]:
    """A module in which everything in the dashboard is declared to be of its type."""
    yield "import type { Dashboard, FieldConfig, GraphFieldConfig } from '@grafana/schema';"
    for number, file in enumerate(PANELS.values()):
        yield f"import type * as panel{number} from '@grafana/schema/dist/esm/raw/composable/{file}';"
    yield LOOSE
    yield f"export const dashboard: Loose<Dashboard> = {json.dumps(without_untyped(dashboard))};"
    options = {kind: f"Loose<panel{number}.Options>" for number, kind in enumerate(PANELS)}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            name, defaults = f"of{panel['id']}", dict(panel["fieldConfig"]["defaults"])
            custom = defaults.pop("custom", {})
            yield f"export const options_{name}: {options[panel['type']]} = {json.dumps(panel['options'])};"
            yield f"export const custom_{name}: Loose<GraphFieldConfig> = {json.dumps(custom)};"
            yield f"export const defaults_{name}: Loose<FieldConfig> = {json.dumps(defaults)};"


def complaints(modules: Path, tmp_path: Path, dashboard: dict[str, Any], version: str) -> str:
    """What the compiler says."""
    schema = tmp_path / "node_modules" / "@grafana" / "schema"  # its own files import it by this name
    schema.parent.mkdir(parents=True)
    schema.symlink_to(modules / "node_modules" / f"grafana-schema-{version}")
    (tmp_path / "check.ts").write_text("\n".join(typed(dashboard)), encoding="utf-8")
    compiler = modules / "node_modules" / "typescript" / "bin" / "tsc"
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node", "--target", "es2020"]
    command = ["node", str(compiler), *flags, "--preserveSymlinks", "check.ts"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    return checked.stdout + checked.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_fits_grafanas_types(modules: Path, tmp_path: Path, file: Path, version: str) -> None:
    assert complaints(modules, tmp_path, json.loads(file.read_text("utf-8")), version) == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_option_does_not(modules: Path, tmp_path: Path, version: str) -> None:
    dashboard = json.loads(DASHBOARDS[0].read_text("utf-8"))
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "stat")
    panel["options"]["colourMode"] = panel["options"].pop("colorMode")
    assert "colourMode" in complaints(modules, tmp_path, dashboard, version)
