"""`helixflow list`: the models of models.yaml, or with --base-url those of a running server."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from inference_server.cli.arguments import (
    VerbParser,
    add_client_flags,
    add_json_flag,
    add_settings,
    flags_of,
)
from inference_server.cli.configured import read_configuration
from inference_server.cli.terminal import Terminal
from inference_server.config.units import format_bytes

DESCRIPTION = """\
List the models that models.yaml configures. With --base-url (or HELIXFLOW_BASE_URL), ask that server
instead: it also tells which are loaded and how much memory they hold."""


def add_arguments(parser: VerbParser) -> None:
    """Which file, or which server."""
    add_client_flags(parser, default=None)
    add_json_flag(parser)
    add_settings(parser, ["config"])


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints the list."""
    base_url = args.base_url or terminal.env.get("HELIXFLOW_BASE_URL")
    if base_url and not args.config:
        return _list_served(base_url, args, terminal)
    return _list_configured(args, terminal)


def _list_configured(args: Namespace, terminal: Terminal) -> int:
    configuration = read_configuration({"config": flags_of(args).get("config")}, terminal)
    models = configuration.catalog.models.values()
    if args.json:
        rows = [
            {"name": m.name, "source": m.source, "aliases": m.aliases, "preload": m.preload} for m in models
        ]
        terminal.print_json({"models": rows})
    elif not models:
        terminal.hint("no models; list some in ./models.yaml, or serve one with `helixflow serve org/name`")
    else:
        rows_ = [(m.name, ", ".join(m.aliases) or "-", m.source) for m in models]
        terminal.table(("MODEL", "ALIASES", "SOURCE"), rows_)
    return 0


def _list_served(base_url: str, args: Namespace, terminal: Terminal) -> int:
    from inference_server.cli.client import ServerClient

    with ServerClient(base_url, args.api_key or terminal.env.get("HELIXFLOW_API_KEY")) as client:
        models = client.models()
    if args.json:
        terminal.print_json({"models": models})
    else:
        titles = ("MODEL", "STATUS", "DEVICE", "MEMORY", "CONTEXT", "QUANTIZATION", "ALIAS OF")
        terminal.table(titles, [_served_row(model) for model in models])
    return 0


def _served_row(model: dict[str, Any]) -> tuple[str, ...]:
    memory = model.get("memory_bytes")
    shown = format_bytes(memory) if isinstance(memory, int) and memory > 0 else "-"
    rest = (_text(model, "max_model_len"), _text(model, "quantization"), _text(model, "parent"))
    return (_text(model, "id"), _text(model, "status"), _text(model, "device"), shown, *rest)


def _text(model: dict[str, Any], key: str) -> str:
    value = model.get(key)
    return "-" if value is None else str(value)
