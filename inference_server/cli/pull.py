"""`helixflow pull MODEL`: fetches and converts a model into the cache, with a progress bar."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from inference_server.cli.arguments import VerbParser, add_settings, flags_of
from inference_server.cli.configured import read_configuration
from inference_server.cli.display import progress_display
from inference_server.cli.terminal import Terminal
from inference_server.config.configuration import find_model
from inference_server.errors import ConfigError

DESCRIPTION = """\
Fetch a model into the cache, and convert it if it needs that, so that its first load is quick.
An interrupted download goes on where it stopped. Exit status 1: it could not be fetched."""


def add_arguments(parser: VerbParser) -> None:
    """What to fetch, and where to."""
    parser.add_argument("model", metavar="MODEL", help="a configured name, or a source such as org/name")
    add_settings(parser, ["config", "cache_dir"])


def run(args: Namespace, terminal: Terminal) -> int:
    """Fetches; returns when the model is in the cache."""
    flags = {name: value for name, value in flags_of(args).items() if name != "model"}
    configuration = read_configuration(flags, terminal)
    spec = find_model(configuration.catalog, args.model, Path())
    _check_source(spec.source, spec.revision)
    from inference_server.app import pull

    with progress_display(terminal) as on_progress:
        status = pull(configuration.settings, spec, on_progress)
    if status == 0:
        terminal.print(f"{spec.name} is in the cache")
    return status


def _check_source(source: str, revision: str | None) -> None:
    from inference_server.checkpoints.sources import parse_source

    try:
        parse_source(source, revision)
    except ConfigError as error:
        raise ConfigError(f"MODEL: {error.message}", param="model") from None
