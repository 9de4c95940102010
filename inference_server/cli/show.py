"""`helixflow show MODEL`: its entry, what the cache has of it, what it is, and how a server holds it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    add_settings,
    client_of,
    flags_of,
)
from inference_server.cli.configured import read_configuration
from inference_server.cli.failures import ServerError
from inference_server.cli.residents import TITLES, resident_rows
from inference_server.cli.terminal import Terminal
from inference_server.cli.values import model_value
from inference_server.config.catalog import ModelSpec
from inference_server.config.configuration import find_model
from inference_server.config.units import format_bytes
from inference_server.errors import FetchFailed

DESCRIPTION = """\
Show one model: its entry with the places where values were set, the files that the cache keeps for it, what
its own files say (architecture, parameters, limits, chat template), and its state on a running server."""
ENTRY_KEYS = (  # shown whether they are set or not
    "source", "aliases", "task", "device", "dtype", "quantization", "kernels", "max_model_len",
    "kv_cache", "keep_alive", "preload", "pinned", "speculation",
)  # fmt: skip
Section = Mapping[str, str]


def add_arguments(parser: VerbParser) -> None:
    """Which model, and where to look."""
    parser.add_argument("model", metavar="MODEL", help="a configured name, or a source such as org/name")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)
    add_settings(parser, ["config", "cache_dir"])


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints what is known."""
    flags = {name: value for name, value in flags_of(args).items() if name != "model"}
    configuration = read_configuration(flags, terminal)
    spec = find_model(configuration.catalog, args.model, Path())
    cache_dir = Path(configuration.settings.cache_dir)
    base_url, api_key = client_of(args, terminal)
    state = _state(spec.name, base_url, api_key)
    sections: dict[str, Section] = {
        "entry": _entry(spec, configuration.model_origins.get(spec.name, {})),
        "files": _files(spec, cache_dir),
        "model": _facts(spec, cache_dir),
    }
    held = state if isinstance(state, dict) else None
    if args.json:
        terminal.print_json({"name": spec.name, **sections, "state": held})
        return 0
    otherwise = {
        "files": f"none; get them with: helixflow pull {spec.name}",
        "model": "not known before its files are here",
    }
    terminal.print(terminal.bold(spec.name))
    for title, section in sections.items():
        _print(title, section, otherwise.get(title, ""), terminal)
    _print(f"on {base_url}", _state_section(held) if held else {}, str(state), terminal)
    return 0


def _entry(spec: ModelSpec, origins: Mapping[str, str]) -> Section:
    """What is set, and what matters though it is not."""
    values = {key: model_value(spec, key) for key in dict.fromkeys((*ENTRY_KEYS, *origins))}
    return {
        key: f"{value}  ({_place(origins[key])})" if key in origins else value
        for key, value in values.items()
        if key in origins or value != "None"
    }


def _place(origin: str) -> str:
    """Where in models.yaml, or which flag or variable."""
    return origin.partition(", ")[2] or origin


def _files(spec: ModelSpec, cache_dir: Path) -> Section:
    from inference_server.checkpoints.kept import kept_for

    kept = kept_for(spec.source, spec.revision, cache_dir)
    return {str(entry.path.relative_to(cache_dir)): format_bytes(entry.num_bytes) for entry in kept}


def _facts(spec: ModelSpec, cache_dir: Path) -> Section:
    """What the model's own files say; empty while they are not here."""
    from inference_server.checkpoints.facts import model_facts
    from inference_server.checkpoints.kept import model_folder
    from inference_server.checkpoints.parameters import parameter_size

    folder = model_folder(spec.source, spec.revision, cache_dir)
    try:
        facts = model_facts(folder) if folder is not None else None
    except FetchFailed as error:
        return {"damaged": error.message}
    if folder is None or facts is None:
        return {}
    return {
        "architecture": facts.architecture,
        "parameters": parameter_size(folder) or "unknown",
        "layers": str(facts.num_layers),
        "vocabulary": str(facts.vocab_size),
        "longest context": f"{facts.max_position_embeddings} tokens",
        "stored as": facts.dtype or "unknown",
        "chat template": "yes" if _has_template(folder) else "no",
    }


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    from inference_server.checkpoints.facts import read_json

    return "chat_template" in (read_json(folder / "tokenizer_config.json") or {})


def _state(name: str, base_url: str, api_key: str | None) -> dict[str, Any] | str:
    """The model as the server there shows it, or why it does not."""
    from inference_server.cli.client import NO_SERVER, ServerClient

    try:
        with ServerClient(base_url, api_key) as client:
            models = client.lifecycle().models
    except ServerError as error:
        return "no server answers there" if error.code == NO_SERVER else error.message
    return next((dict(m) for m in models if m.get("id") == name), "the server there does not have it")


def _state_section(state: Mapping[str, Any]) -> Section:
    (row,) = resident_rows([state], show_all=True)
    cells = {title.lower(): cell for title, cell in zip(TITLES, row, strict=True) if title != "MODEL"}
    failure = state.get("failure")
    return cells | ({"failure": str(failure)} if failure else {})


def _print(title: str, section: Section, otherwise: str, terminal: Terminal) -> None:
    terminal.print()
    terminal.print(terminal.bold(title))
    if not section:
        terminal.print(f"  {terminal.dim(terminal.foreign(otherwise))}")
    width = max(map(len, section), default=0)
    for key, value in section.items():
        terminal.print(f"  {key.ljust(width)}  {terminal.foreign(value)}")
