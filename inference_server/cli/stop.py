"""`helixflow stop MODEL`: takes a model of a running server out of memory."""

from __future__ import annotations

from argparse import Namespace

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    client_of,
)
from inference_server.cli.client import ServerClient
from inference_server.cli.terminal import Terminal

DESCRIPTION = """\
Take a model of a running server out of memory. Requests that run on it finish first; a load under way is
given up. The next request for the model loads it again. The server itself goes on; Ctrl-C ends that one."""


def add_arguments(parser: VerbParser) -> None:
    """What to unload, and where."""
    parser.add_argument("model", metavar="MODEL", help="name or alias of a model on the server")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Unloads; returns when the model's memory is free."""
    with ServerClient(*client_of(args, terminal)) as client:
        client.unload(args.model)
    if args.json:
        terminal.print_json({"model": args.model, "status": "unloaded"})
    else:
        terminal.print(f"{args.model} is not in memory any more")
    return 0
