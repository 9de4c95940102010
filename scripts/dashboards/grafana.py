"""What a Grafana dashboard is made of: panels with queries, laid out from left to right. Knows no metric.

The JSON is that of Grafana 10 (schema 39), which later versions read as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SCHEMA_VERSION = 39
WIDTH = 24  # columns of Grafana's grid
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
Json = dict[str, object]


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of its lines, `{{label}}` being a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel. `unit` is one of Grafana's; `note` says what to read in it.

    `width` and `height` are in its grid; the rest goes into the panel and its field configuration as it is.
    """

    title: str
    note: str
    kind: str
    unit: str
    queries: Sequence[Query]
    width: int = 8
    height: int = 8
    options: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    overrides: Sequence[Json] = ()


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


def lines(
    title: str,
    note: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    limit: str | None = None,
) -> Panel:
    """Lines over time; the one called `limit` stands alone above the others."""
    custom: Json = {"fillOpacity": 10, "showPoints": "never", "axisSoftMin": 0}
    if stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal"}}
    options: Json = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    overrides = [_alone(limit)] if limit else []
    return Panel(title, note, "timeseries", unit, queries, width, 8, options, {"custom": custom}, overrides)


def number(title: str, note: str, unit: str, expr: str, **defaults: object) -> Panel:
    """One big number."""
    options: Json = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    return Panel(title, note, "stat", unit, [Query(expr)], 4, 4, options, defaults)


def heat_map(title: str, note: str, histogram: str, selector: str) -> Panel:
    """How a histogram's observations spread over its buckets."""
    expr = f"sum by (le) (increase({histogram}_bucket{selector}[$__rate_interval]))"
    options: Json = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "s"},
        "cellGap": 1,
    }
    return Panel(title, note, "heatmap", "s", [Query(expr, "{{le}}")], 12, 8, options)


def percentiles(histogram: str, selector: str, *shares: float, by: str = "") -> list[Query]:
    """Percentiles of a histogram over all models, or for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    rate = f"sum by ({labels}) (rate({histogram}_bucket{selector}[$__rate_interval]))"
    return [Query(f"histogram_quantile({share}, {rate})", f"{legend}p{share * 100:g}") for share in shares]


def steps(*bounds: tuple[float | None, str]) -> Json:
    """Colours from each bound on; the first bound is None."""
    return {"mode": "absolute", "steps": [{"value": bound, "color": color} for bound, color in bounds]}


def dashboard(uid: str, title: str, note: str, variables: Iterable[Json], rows: Sequence[Row]) -> Json:
    """The whole dashboard."""
    return {
        "uid": uid,
        "title": title,
        "description": note,
        "tags": ["helixflow"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": [_links()],
        "panels": _laid_out(rows),
    }


def datasource_variable() -> Json:
    """Which Prometheus is asked."""
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def label_variable(name: str, label: str, metric: str) -> Json:
    """Values of a label, several of which may be chosen; all of them at first."""
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _laid_out(rows: Sequence[Row]) -> list[Json]:
    found: list[Json] = []
    top = 0
    for row in rows:
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top, height = 0, top + height, 0
            position = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            found.append({"id": len(found) + 1, "gridPos": position, **_panel(panel)})
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return found


def _panel(panel: Panel) -> Json:
    is_heat_map = panel.kind == "heatmap"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "format": "heatmap" if is_heat_map else "time_series",
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **panel.defaults},
            "overrides": list(panel.overrides),
        },
        "options": panel.options,
    }


def _alone(line: str) -> Json:
    properties = [
        {"id": "custom.stacking", "value": {"mode": "none"}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
    ]
    return {"matcher": {"id": "byName", "options": line}, "properties": properties}


def _links() -> Json:
    return {
        "type": "dashboards",
        "title": "HelixFlow",
        "tags": ["helixflow"],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": True,
    }
