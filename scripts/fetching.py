"""What scripts that fetch tools for tests share: where tools lie, checked commands, Debian packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TIMEOUT_S = 80  # of each command: who cannot fetch is told so before a test would be given up


class CannotBeHad(Exception):  # noqa: N818 - the name says what happened
    """Why there is no such tool here, in one line."""


class Package(NamedTuple):
    """A Debian package as it is known to be."""

    name: str
    version: str
    sha256: str


def tell(what: str, fetched: Callable[[], Path]) -> int:
    """Print the folder that `fetched` returns, or why `what` cannot be had; returns the exit status."""
    try:
        print(fetched())
    except CannotBeHad as why:
        print(f"{what} cannot be had: {why}", file=sys.stderr)
        return 1
    return 0


def tools_root() -> Path:
    """Where fetched tools lie, outside the repository: $TEST_TOOLS, or ~/.cache/helixflow-tools."""
    return Path(os.environ.get("TEST_TOOLS") or Path.home() / ".cache" / "helixflow-tools")


def filled(home: Path, fill: Callable[[Path, Path], None]) -> Path:
    """`home`, filled if it is not there by `fill(scratch, whole)`; several processes may ask at once."""
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            fill(Path(scratch), whole)
            try:
                whole.rename(home)
            except OSError:  # somebody else was faster
                if not home.exists():
                    raise
    return home


def unpack_debian(packages: Sequence[Package], scratch: Path, into: Path) -> None:
    """Download packages from Debian's archive and unpack them, without installing anything."""
    wanted = [f"{package.name}={package.version}" for package in packages]
    try:
        run("apt-get", "download", *wanted, cwd=scratch)
    except CannotBeHad:
        run("apt-get", "update", cwd=scratch)  # a fresh machine has no package lists
        run("apt-get", "download", *wanted, cwd=scratch)
    for package in packages:
        (file,) = scratch.glob(f"{package.name}_*.deb")
        check(file, package.sha256)
        run("dpkg", "-x", str(file), str(into), cwd=scratch)


def check(file: Path, wanted: str) -> None:
    """Raise `CannotBeHad` unless the file's SHA-256 is this one."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wanted:
        raise CannotBeHad(f"the SHA-256 of {file.name} is {found}, not {wanted}")


def run(*command: str, cwd: Path) -> str:
    """What the command prints; raises `CannotBeHad` if it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBeHad(f"{command[0]}: {error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotBeHad(f"{' '.join(command[:4])} failed: {last}")
    return done.stdout
