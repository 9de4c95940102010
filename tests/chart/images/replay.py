"""Replays a Dockerfile without a container engine: what a stage writes is an overlay over a root that exists.

Owns the folders of the stages; one begins as a copy of what the stage below it has written. The root, this
machine's or an empty Debian's, stands in for the base image, and nothing is written to it. Mounts live in a
namespace of each command and end with it, which needs root and a kernel with overlayfs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chart.images.dockerfile import Dockerfile, Instruction, Stage, expanded

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How this machine reaches its package index is no part of the images.
_OURS = {
    name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")
}


def possible(scratch: Path) -> bool:
    """Whether overlays can be mounted here."""
    if os.geteuid() != 0:
        return False
    probe = Layer(scratch / "probe", Path("/"))
    return subprocess.run(probe.command(["true"]), check=False).returncode == 0


@dataclass
class Layer:
    """What a stage and those below it have written over a root."""

    folder: Path
    base: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    working_directory: str = "/"

    def __post_init__(self) -> None:
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def command(
        self,
        words: Sequence[str],
        *,
        binds: Mapping[str, Path] | None = None,
        user: str = "0:0",
        environment: Mapping[str, str] | None = None,
        writable: bool = True,
    ) -> list[str]:
        """A command line that runs words in this root; what `binds` names is put in place first."""
        root = self.folder / "root"
        options = f"lowerdir={self.base},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        options += "" if writable else ",ro"
        script = [f"mount -t overlay overlay -o {options} {root}", f"mount -t proc proc {root}/proc"]
        script += [f"mount --rbind /dev {root}/dev"]
        for target, source in (binds or {}).items():
            if writable:
                script.append(f"mkdir -p {root}{target}")
            script.append(f"mount --bind {source} {root}{target}")
        variables = {**self.environment, **(environment or {})}
        inner = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        inner += ["sh", "-c", f'cd {self.working_directory} && exec "$@"', "sh", *words]
        script.append(f"exec chroot --userspec={user} {root} {shlex.join(inner)}")
        return ["unshare", "--mount", "sh", "-ec", "\n".join(script)]


class Replay:
    """The stages of a Dockerfile, carried out one after the other."""

    def __init__(
        self, dockerfile: Dockerfile, *, context: Path, scratch: Path, base: Path, cache: Path
    ) -> None:
        self._dockerfile = dockerfile
        self._context = context
        self._scratch = scratch
        self._base = base
        self._cache = cache
        self.layers: dict[str, Layer] = {}

    def build(self, **arguments: str) -> Layer:
        """All stages, with these arguments instead of the file's; returns the last."""
        given = self._dockerfile.arguments | arguments
        for stage in self._dockerfile.stages.values():
            self.layers[stage.name] = self._begin(stage)
            known: dict[str, str] = {}
            for instruction in stage.instructions:
                if instruction.verb == "ARG":
                    known |= {name: given.get(name, value) for name, value in _argument(instruction).items()}
                else:
                    self._carry_out(instruction, self.layers[stage.name], known)
        return self.layers[stage.name]

    def _begin(self, stage: Stage) -> Layer:
        folder = self._scratch / stage.name
        if stage.base not in self.layers:
            return Layer(folder, self._base)
        parent = self.layers[stage.base]
        folder.mkdir()
        subprocess.run(["cp", "-a", str(parent.folder / "upper"), str(folder)], check=True)
        return Layer(folder, self._base, dict(parent.environment), parent.working_directory)

    def _carry_out(self, instruction: Instruction, layer: Layer, arguments: Mapping[str, str]) -> None:
        if instruction.verb == "RUN":
            self._run(instruction, layer, arguments)
        elif instruction.verb == "COPY":
            self._copy(instruction, layer)
        elif instruction.verb == "ENV":
            pairs = instruction.assignments.items()
            layer.environment |= {name: expanded(value, layer.environment) for name, value in pairs}
        elif instruction.verb == "WORKDIR":
            layer.working_directory = instruction.text
            _in_upper(layer, instruction.text).mkdir(parents=True, exist_ok=True)

    def _run(self, instruction: Instruction, layer: Layer, arguments: Mapping[str, str]) -> None:
        mount = dict(pair.split("=") for pair in instruction.options.get("mount", "").split(",") if pair)
        binds = {mount["target"]: self._cache} if mount else {}
        command = layer.command(
            ["/bin/sh", "-c", instruction.rest], binds=binds, environment={**_OURS, **arguments}
        )
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _copy(self, instruction: Instruction, layer: Layer) -> None:
        *sources, target = instruction.rest.split()
        place = _in_upper(layer, os.path.join(layer.working_directory, target))
        if "from" in instruction.options:
            other, (source,) = self.layers[instruction.options["from"]], sources
            place.parent.mkdir(parents=True, exist_ok=True)
            words = ["cp", "-a", source, "/copied"]
            subprocess.run(other.command(words, binds={"/copied": place.parent}), check=True)
            return
        for source in sources:
            _copy_in(self._context / source, place / source if target.endswith("/") else place)


def _argument(instruction: Instruction) -> dict[str, str]:
    name, _, value = instruction.text.partition("=")
    return {name: value}


def _in_upper(layer: Layer, path: str) -> Path:
    return layer.folder / "upper" / os.path.normpath(path).lstrip("/")


def _copy_in(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)
