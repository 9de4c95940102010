"""`helixflow rm MODEL`: deletes what the cache folder keeps for a model, and nothing that others need."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from inference_server.cli.failures import ServerError, UsageError
from inference_server.cli.terminal import Terminal
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.configuration import find_model
from inference_server.config.units import format_bytes

if TYPE_CHECKING:
    from inference_server.checkpoints.kept import Kept

DESCRIPTION = """\
Delete what the cache folder keeps for a model: fetched, converted and packed files that no other model of
models.yaml needs. Its entry stays, so the next load fetches it again.

Your own folders and files are never touched, nor is the Hugging Face cache, which other programs use too.
Refused while a running server has the model in memory; asks first, unless --yes says so."""


def add_arguments(parser: VerbParser) -> None:
    """Which model, which cache, and whether to ask."""
    parser.add_argument("model", metavar="MODEL", help="a configured name, or a source such as org/name")
    parser.add_argument("-y", "--yes", action="store_true", help="delete without asking")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)
    add_settings(parser, ["config", "cache_dir"])


def run(args: Namespace, terminal: Terminal) -> int:
    """Deletes; 1 if the answer was no."""
    flags = {name: value for name, value in flags_of(args).items() if name != "model"}
    configuration = read_configuration(flags, terminal)
    spec = find_model(configuration.catalog, args.model, Path())
    cache_dir = Path(configuration.settings.cache_dir)
    _refuse_if_loaded(spec.name, args, terminal)
    kept = _only_of(spec, configuration.catalog, cache_dir)
    if not kept:
        return _nothing(spec.name, args, terminal)
    if not args.json:
        terminal.table(("SIZE", "IN THE CACHE"), [_row(entry, cache_dir) for entry in kept])
    total = sum(entry.num_bytes for entry in kept)
    if not args.yes and not _confirmed(f"Delete {format_bytes(total)}? [y/N] ", terminal):
        terminal.hint("nothing was deleted")
        return 1
    _delete(kept, cache_dir)
    if args.json:
        deleted = [str(entry.path) for entry in kept]
        terminal.print_json({"model": spec.name, "deleted": deleted, "bytes": total})
    else:
        terminal.print(f"{format_bytes(total)} of {spec.name} were deleted")
    return 0


def _refuse_if_loaded(name: str, args: Namespace, terminal: Terminal) -> None:
    """A server that has the model in memory would not notice, and could not load it again for a while."""
    from inference_server.cli.client import ServerClient

    base_url, api_key = client_of(args, terminal)
    try:
        with ServerClient(base_url, api_key) as client:
            models = client.models()
    except ServerError as error:
        if args.base_url or error.code in ("invalid_api_key", "forbidden"):
            raise
        return  # nobody serves models where one would by default
    state = next((model.get("status") for model in models if model.get("id") == name), "unloaded")
    if state not in ("unloaded", "failed"):
        raise ServerError(f"{name} is {state} on {base_url}; first say: helixflow stop {name}")


def _only_of(spec: ModelSpec, catalog: Catalog, cache_dir: Path) -> list[Kept]:
    """What the model has in the cache and no other model has."""
    from inference_server.checkpoints.kept import kept_for

    others = {
        entry
        for other in catalog.models.values()
        if other.name != spec.name
        for entry in kept_for(other.source, other.revision, cache_dir)
    }
    return [entry for entry in kept_for(spec.source, spec.revision, cache_dir) if entry not in others]


def _nothing(name: str, args: Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.print_json({"model": name, "deleted": [], "bytes": 0})
    else:
        terminal.hint(f"the cache holds nothing that only {name} needs")
    return 0


def _confirmed(question: str, terminal: Terminal) -> bool:
    if not terminal.is_interactive:
        raise UsageError("nobody is there to ask; say --yes", "helixflow rm")
    try:
        return terminal.ask(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _delete(kept: Sequence[Kept], cache_dir: Path) -> None:
    from inference_server.checkpoints.kept import delete

    try:
        for entry in kept:
            delete(entry, cache_dir)
    except OSError as error:
        raise ServerError(f"{error.filename} cannot be deleted: {error.strerror}") from error


def _row(entry: Kept, cache_dir: Path) -> tuple[str, str]:
    return format_bytes(entry.num_bytes), str(entry.path.relative_to(cache_dir))
