"""The chart's Grafana dashboards, written down in Python; `python -m scripts.dashboards` writes the JSON."""
