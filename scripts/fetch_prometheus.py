#!/usr/bin/env python3
"""Fetch Prometheus and promtool from Debian's archive, without installing anything; print their folder.

    python scripts/fetch_prometheus.py       # ~/.cache/helixflow-tools/prometheus-VERSION/usr/bin

`TEST_TOOLS` changes the cache folder. The package is unpacked only if its checksum is the one below.
Needs Debian's apt-get and dpkg; no root if the package lists are there. Exits with 1 and one line on standard
error where it cannot be had.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fetching import CannotBeHad, Package, filled, run, tell, tools_root, unpack_debian

VERSION = "2.42.0+ds-5+deb12u1"
SHA256 = {"amd64": "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55"}


def fetched() -> Path:
    """The folder with `prometheus` and `promtool`."""
    return filled(tools_root() / f"prometheus-{VERSION}", _fill) / "usr/bin"


def _fill(scratch: Path, whole: Path) -> None:
    architecture = run("dpkg", "--print-architecture", cwd=scratch).strip()
    wanted = SHA256.get(architecture)
    if wanted is None:
        raise CannotBeHad(f"no checksum is known for {architecture}")
    unpack_debian([Package("prometheus", VERSION, wanted)], scratch, whole)


if __name__ == "__main__":
    sys.exit(tell(f"Prometheus {VERSION}", fetched))
