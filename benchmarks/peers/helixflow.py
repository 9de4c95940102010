"""HelixFlow's own rows: one server per configuration in `configs/rows.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.peers.servers import Server, Started
from benchmarks.peers.workshop import Workshop
from inference_server.bench.target import HelixFlowLaunch
from inference_server.config.catalog import load_catalog

ROWS = Path(__file__).parent / "configs" / "rows.yaml"


def helixflow_servers(rows: Path = ROWS) -> tuple[Server, ...]:
    """The configurations in the order of the file."""
    entries = yaml.safe_load(rows.read_text(encoding="utf-8"))
    return tuple(_server(entry, (rows.parent / entry["config"]).resolve()) for entry in entries)


def _server(entry: dict[str, str], config: Path) -> Server:
    def prepare(workshop: Workshop) -> Callable[[int], Started]:
        model = next(iter(load_catalog(config).models))

        def started(port: int) -> Started:
            launch = HelixFlowLaunch(port, ("--config", str(config)))
            return Started(launch.command, launch.base_url, model, "/health/ready")

        return started

    return Server(entry["key"], entry["name"], entry["weights"], prepare, is_ours=True)
