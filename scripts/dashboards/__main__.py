"""Write helm/helixflow/dashboards/*.json: `python -m scripts.dashboards`, from the repository."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.dashboards.grafana import Json
from scripts.dashboards.models import models
from scripts.dashboards.serving import serving
from scripts.dashboards.slo import slo

FOLDER = Path(__file__).parents[2] / "helm" / "helixflow" / "dashboards"
DASHBOARDS = {"serving.json": serving, "models.json": models, "slo.json": slo}


def text(dashboard: Json) -> str:
    """The file's text."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them all."""
    for name, make in DASHBOARDS.items():
        (FOLDER / name).write_text(text(make()), encoding="utf-8")


if __name__ == "__main__":
    main()
