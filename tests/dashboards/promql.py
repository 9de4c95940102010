"""What the rules and dashboards ask Prometheus, and which metrics that names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "helixflow"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULES = sorted((CHART / "rules").glob("*.yaml"))
# Made by Prometheus itself.
OWN_SERIES = {"up", "ALERTS"}
# Made by kube-state-metrics.
KUBERNETES_SERIES = {"kube_deployment_spec_replicas", "kube_deployment_status_replicas_available"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACES = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\()\b(?![\w:]|\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}


@dataclass(frozen=True)
class Asked:
    """One expression, and who asks it."""

    where: str
    expr: str

    def filled(self, *, window: str, job: str = ".*", model: str = ".*") -> str:
        """With values in place of Grafana's variables."""
        expr = self.expr.replace("$__rate_interval", window).replace("$__range", window)
        return expr.replace("$job", job).replace("$model", model)


def metrics_in(expr: str) -> set[str]:
    """Every metric that an expression names."""
    bare = _GROUPING.sub(" ", _BRACES.sub(" ", _STRING.sub('""', expr)))
    return set(_NAME.findall(bare)) - _WORDS


def rules() -> list[dict[str, Any]]:
    """All rules of all files."""
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]


def recorded() -> set[str]:
    """The series that recording rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def panels(file: Path) -> list[dict[str, Any]]:
    """A dashboard's panels that show something."""
    return [panel for panel in json.loads(file.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def asked_by_dashboards() -> Iterator[Asked]:
    """Every query of every panel."""
    for file in DASHBOARDS:
        for panel in panels(file):
            for target in panel["targets"]:
                yield Asked(f"{file.stem}: {panel['title']} {target['refId']}", target["expr"])


def asked_by_rules() -> Iterator[Asked]:
    """Every rule's expression."""
    for rule in rules():
        yield Asked(rule.get("record") or rule["alert"], rule["expr"])
