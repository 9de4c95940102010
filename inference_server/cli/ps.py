"""`helixflow ps`: the models of a running server that are in memory or on their way, once or live."""

from __future__ import annotations

import time
from argparse import Namespace

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    client_of,
)
from inference_server.cli.client import Lifecycle, ServerClient
from inference_server.cli.residents import TITLES, memory_line, resident_rows
from inference_server.cli.terminal import Terminal

DESCRIPTION = """\
Show which models of a running server are in memory or on their way there: state, device, bytes reserved,
when each was last used, when it will be unloaded, and how many requests wait for it.

With --watch on a terminal, the table is drawn anew each second until Ctrl-C."""
REFRESH_S = 1.0


def add_arguments(parser: VerbParser) -> None:
    """Which server, which models, how often."""
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)
    parser.add_argument("-a", "--all", action="store_true", help="also models that are not in memory")
    parser.add_argument("-w", "--watch", action="store_true", help="keep the table up to date until Ctrl-C")


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints the table."""
    with ServerClient(*client_of(args, terminal)) as client:
        if args.watch and not args.json and terminal.is_interactive:
            return _watch(client, terminal, show_all=args.all)
        found = client.lifecycle()
    if args.json:
        terminal.print_json({"models": list(found.models), "memory": list(found.memory)})
    else:
        _print(found, terminal, show_all=args.all)
    return 0


def _print(found: Lifecycle, terminal: Terminal, *, show_all: bool) -> None:
    rows = resident_rows(found.models, show_all=show_all)
    if rows:
        terminal.table(TITLES, rows)
    else:
        terminal.hint("no model is in memory; the next request for one loads it, or `helixflow load MODEL`")
    if line := memory_line(found.memory):
        terminal.print(terminal.dim(line))


def _watch(client: ServerClient, terminal: Terminal, *, show_all: bool) -> int:
    from inference_server.cli.live import LiveTable

    with LiveTable(terminal.stdout) as table:
        try:
            while True:
                found = client.lifecycle()
                rows = resident_rows(found.models, show_all=show_all)
                cells = [[terminal.foreign(cell) for cell in row] for row in rows]
                table.show(TITLES, cells, memory_line(found.memory))
                time.sleep(REFRESH_S)
        except KeyboardInterrupt:
            return 0
