"""`helixflow load MODEL`: brings a model of a running server into memory, with a progress bar."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TYPE_CHECKING

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    client_of,
)
from inference_server.cli.client import ServerClient
from inference_server.cli.display import progress_display
from inference_server.cli.terminal import Terminal

if TYPE_CHECKING:
    from inference_server.worker.protocol import Progress

DESCRIPTION = """\
Load a model of a running server, fetching it first if need be; other models make room. A model that sleeps
is woken. Exit status 1: it could not be loaded. Ctrl-C ends the waiting, not the load."""
LOOK_S = 0.25


def add_arguments(parser: VerbParser) -> None:
    """What to load, where, and for how long."""
    parser.add_argument("model", metavar="MODEL", help="name or alias of a model on the server")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)
    parser.add_argument(
        "--keep-alive",
        metavar="DURATION",
        help="how long it stays without use, such as 30m; -1: for ever; default: as models.yaml says",
    )


def run(args: Namespace, terminal: Terminal) -> int:
    """Loads; returns when the model is ready."""
    with ServerClient(*client_of(args, terminal)) as client:
        loading = _begin(client, args.model, args.keep_alive)
        with progress_display(terminal) as show:
            _follow(client, args.model, loading, show)
        loading.result()
        model = next((m for m in client.lifecycle().models if _is_called(m, args.model)), {})
    if args.json:
        terminal.print_json(dict(model))
    else:
        terminal.print(f"{args.model} is loaded")
    return 0


def _begin(client: ServerClient, model: str, keep_alive: str | None) -> Future[None]:
    """The load, on a thread that Ctrl-C does not wait for."""
    loading: Future[None] = Future()

    def load() -> None:
        try:
            client.load(model, keep_alive)
            loading.set_result(None)
        except Exception as error:
            loading.set_exception(error)

    Thread(target=load, daemon=True).start()
    return loading


def _follow(client: ServerClient, name: str, loading: Future[None], show: Callable[[Progress], None]) -> None:
    """Show how far the load has come, until it ends however it does."""
    from inference_server.worker.protocol import Progress

    while not wait([loading], LOOK_S).done:
        for model in client.lifecycle().models:
            progress = model.get("progress")
            if _is_called(model, name) and isinstance(progress, dict):
                show(Progress(stage=str(progress.get("stage")), fraction=progress.get("fraction")))


def _is_called(model: object, name: str) -> bool:
    return isinstance(model, dict) and (name == model.get("id") or name in (model.get("aliases") or ()))
