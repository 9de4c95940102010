"""The folder in which peers live: a virtual environment for each, made once, and the weights that all serve.

It knows pip and HelixFlow's own cache, no server.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.requantize import write_q4_0
from inference_server.checkpoints.block_headers import BLOCKS_NAME
from inference_server.checkpoints.digest import remembered_sha256
from inference_server.checkpoints.fetch import fetch
from inference_server.checkpoints.sources import parse_source
from inference_server.config.catalog import ModelSpec, load_catalog
from inference_server.config.settings import default_cache_dir
from inference_server.loading.preparation import prepare

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Workshop:
    """Owns `folder`. `config` is the models.yaml whose first model everybody serves."""

    folder: Path
    config: Path
    num_slots: int
    say: Callable[[str], None]

    def environment(
        self, name: str, requirements: Sequence[str], finish: Callable[[Path], None] = lambda folder: None
    ) -> Path:
        """The folder of a virtual environment with these requirements; `finish` may change it once installed.

        Raises:
            subprocess.CalledProcessError: the package index does not have them, or they do not install.
        """
        folder = self.folder / "venvs" / name
        stamp = folder / "installed.txt"
        wanted = "\n".join((sys.version, *requirements, ""))
        if stamp.is_file() and stamp.read_text() == wanted:
            return folder
        self.say(f"installing {' '.join(requirements)} into {folder}")
        stamp.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", *requirements], check=True)
        finish(folder)
        stamp.write_text(wanted)
        return folder

    def gguf(self) -> Path:
        """The file that HelixFlow fetched for the model.

        Raises:
            SystemExit: its source is not a GGUF file.
        """
        spec = self._pulled()
        fetched = fetch(
            parse_source(spec.source, spec.revision),
            cache_dir=Path(default_cache_dir()),
            sha256=spec.sha256,
            allow_pickle=False,
            on_progress=lambda stage, fraction: None,
        )
        if fetched.kind != "gguf":
            raise SystemExit(f"{spec.name} does not come from a GGUF file, so there is none for llama.cpp")
        return fetched.path

    def q4_0(self) -> Path:
        """The same file with its 4-bit tensors as Q4_0, written once."""
        source = self.gguf()
        digest = remembered_sha256(source, Path(default_cache_dir()))
        target = self.folder / "weights" / f"{source.stem}-{digest[:16]}.Q4_0.gguf"
        if not target.is_file():
            self.say(f"writing {target}")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_q4_0(source, target)
        return target

    def checkpoint(self) -> Path:
        """A folder with the bfloat16 weights and the tokenizer into which HelixFlow converted the model.

        It links to the converted one without the GGUF blocks beside them, which other servers would read too.
        """
        folder = self.folder / "weights" / "bfloat16"
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._converted().iterdir():
            link = folder / path.name
            link.unlink(missing_ok=True)
            if path.name != BLOCKS_NAME:
                link.symlink_to(path)
        return folder

    def _converted(self) -> Path:
        spec = self._pulled()
        return prepare(
            source=spec.source,
            revision=spec.revision,
            sha256=spec.sha256,
            cache_dir=Path(default_cache_dir()),
            allow_pickle=False,
            trust_remote_code=False,
            on_progress=lambda stage, fraction: None,
        ).folder

    def _pulled(self) -> ModelSpec:
        spec = next(iter(load_catalog(self.config).models.values()))
        command = [sys.executable, "-m", "inference_server.cli.main", "pull", spec.name]
        subprocess.run(
            [*command, "--config", str(self.config)], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL
        )
        return spec
