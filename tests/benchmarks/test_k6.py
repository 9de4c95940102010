"""The k6 script, one iteration of it in Node.js, with small stand-ins for k6's own modules."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.running import running_server

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.k6.js"
STAND_INS = Path(__file__).parent / "k6"
RUN = """
globalThis.__ENV = JSON.parse(process.argv[2]); globalThis.__VU = 1; globalThis.__ITER = 0;
const script = await import('./load.mjs');
console.log('options ' + JSON.stringify(script.options));
script.default(script.setup());
"""
pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("curl")), reason="needs Node.js and curl"
)


def iteration(folder: Path, **variables: str) -> list[str]:
    """What one iteration prints."""
    modules = folder / "node_modules"
    if not modules.exists():
        modules.mkdir()
        (modules / "k6").symlink_to(STAND_INS)
        shutil.copy(SCRIPT, folder / "load.mjs")
        (folder / "run.mjs").write_text(RUN)
    command = ["node", "--preserve-symlinks", "run.mjs", json.dumps(variables)]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()


def test_an_iteration_asks_the_servers_first_model_and_counts_its_tokens(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {tiny: {source: 'scripted:?output_tokens=99', preload: true}}")
    with running_server(config, "--api-key", "secret") as server:
        lines = iteration(tmp_path, BASE_URL=f"{server.url}/v1", API_KEY="secret", MAX_TOKENS="9")
        refused = iteration(tmp_path, BASE_URL=server.url, MODEL="tiny")
    checks = [line for line in lines if line.startswith("check")]
    assert len(checks) == 3
    assert all(line.endswith("true") for line in checks)
    assert "metric output_tokens: 9" in lines
    assert "check status is 200: false" in refused
    assert not any(line.startswith("metric") for line in refused)


def test_a_rate_makes_the_loop_an_open_one(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {tiny: {source: 'scripted', preload: true}}")
    with running_server(config) as server:
        closed = iteration(tmp_path, BASE_URL=server.url, STREAMS="3")[0]
        opened = iteration(tmp_path, BASE_URL=server.url, RATE="4")[0]
    assert '"executor":"constant-vus","vus":3' in closed
    assert '"executor":"constant-arrival-rate","rate":4' in opened
