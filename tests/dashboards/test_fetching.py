"""Prometheus is fetched only as what it is known to be; where it cannot be had, one line says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fetched_tools import SCRIPTS


def fetch(tmp_path: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a machine that has these programs, each a shell script's body."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in tools.items():
        program = programs / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    environment = {"PATH": str(programs), "TEST_TOOLS": str(tmp_path / "tools")}
    command = [sys.executable, str(SCRIPTS / "fetch_prometheus.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ({}, "dpkg"),
        ({"dpkg": "echo riscv64"}, "no checksum is known for riscv64"),
        ({"dpkg": "echo amd64", "apt_get": "echo 'no network' >&2; exit 100"}, "no network"),
        ({"dpkg": "echo amd64", "apt_get": "echo something else > prometheus_0_amd64.deb"}, "SHA-256"),
    ],
    ids=["no-debian", "another-architecture", "no-network", "another-package"],
)
def test_what_cannot_be_had_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, tools: dict[str, str], why: str
) -> None:
    fetched = fetch(tmp_path, **tools)
    assert fetched.returncode == 1
    assert fetched.stdout == ""
    (line,) = fetched.stderr.splitlines()
    assert why in line
    assert not list((tmp_path / "tools").iterdir())
