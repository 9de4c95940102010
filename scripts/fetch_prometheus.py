#!/usr/bin/env python3
"""Fetch Prometheus and promtool from Debian's archive, without installing anything; print their folder.

    python scripts/fetch_prometheus.py       # ~/.cache/helixflow-tools/prometheus-VERSION/usr/bin

`TEST_TOOLS` changes the cache folder. The package is unpacked only if its checksum is the one below.
Needs Debian's apt-get and dpkg; no root if the package lists are there. Exits with 1 and one line on standard
error where it cannot be had.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2.42.0+ds-5+deb12u1"
SHA256 = {"amd64": "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55"}
TIMEOUT_S = 80  # of each command: who cannot fetch is told so before a test would be given up


class CannotBeHad(Exception):  # noqa: N818 - the name says what happened
    """Why there is no Prometheus here, in one line."""


def main() -> int:
    """Fetch it unless it is there, and say where it is."""
    try:
        print(fetched(Path(os.environ.get("TEST_TOOLS") or Path.home() / ".cache/helixflow-tools")))
    except CannotBeHad as why:
        print(f"Prometheus {VERSION} cannot be had: {why}", file=sys.stderr)
        return 1
    return 0


def fetched(tools: Path) -> Path:
    """The folder with `prometheus` and `promtool`, below `tools`."""
    home = tools / f"prometheus-{VERSION}"
    if not (home / "usr/bin/promtool").exists():
        tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tools) as scratch:
            package = _download(Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            _run("dpkg", "-x", str(package), str(unpacked), cwd=tools)
            try:
                unpacked.rename(home)
            except OSError:  # somebody else was faster
                if not (home / "usr/bin/promtool").exists():
                    raise
    return home / "usr/bin"


def _download(folder: Path) -> Path:
    architecture = _run("dpkg", "--print-architecture", cwd=folder).strip()
    wanted = SHA256.get(architecture)
    if wanted is None:
        raise CannotBeHad(f"no checksum is known for {architecture}")
    try:
        _run("apt-get", "download", f"prometheus={VERSION}", cwd=folder)
    except CannotBeHad:
        _run("apt-get", "update", cwd=folder)  # a fresh machine has no package lists
        _run("apt-get", "download", f"prometheus={VERSION}", cwd=folder)
    (package,) = folder.glob("prometheus_*.deb")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != wanted:
        raise CannotBeHad(f"the package's SHA-256 is {found}, not {wanted}")
    return package


def _run(*command: str, cwd: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBeHad(f"{command[0]}: {error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotBeHad(f"{' '.join(command[:2])} failed: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
