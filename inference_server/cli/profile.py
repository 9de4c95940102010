"""`helixflow profile`: a few seconds of a running model as a file, and where the time went."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    client_of,
)
from inference_server.cli.bench_flags import typed
from inference_server.cli.client import ServerClient
from inference_server.cli.failures import ServerError
from inference_server.cli.terminal import Terminal
from inference_server.config import kinds
from inference_server.profiling.capture import MAX_SECONDS
from inference_server.profiling.hotspots import Hotspot, hotspots

DESCRIPTION = """\
Take a profile of a model that a running server has in memory. It serves requests meanwhile: keep it busy.

  torch   what the model's process computes: operations, GPU kernels and the parts of each step, as a trace
          for https://ui.perfetto.dev
  py-spy  where its Python is, 100 times a second, for https://www.speedscope.app; the server needs the extra
          `profiling`

Then print where most of the time went, in itself and without what it calls."""
EPILOG = """\
examples:
  helixflow profile --seconds 10
  helixflow profile small --kind py-spy -o small.json"""
NUM_SHOWN = 10
DEFAULT_NAMES = {"torch": "profile.torch.json.gz", "py-spy": "profile.speedscope.json"}
VIEWERS = {"torch": "https://ui.perfetto.dev", "py-spy": "https://www.speedscope.app"}


def add_arguments(parser: VerbParser) -> None:
    """Which model, how long, what kind, and where to."""
    parser.epilog = EPILOG
    parser.add_argument("model", nargs="?", metavar="MODEL", help="default: a model that is in memory")
    parser.add_argument(
        "--seconds",
        type=typed(kinds.number(0, MAX_SECONDS, above=True)),
        default=5.0,
        metavar="S",
        help=f"how long, at most {MAX_SECONDS}; default: 5",
    )
    parser.add_argument("--kind", choices=list(DEFAULT_NAMES), default="torch", help="default: torch")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: profile.… in this folder")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Writes the file and prints the hotspots."""
    path = Path(args.output or DEFAULT_NAMES[args.kind])
    with ServerClient(*client_of(args, terminal)) as client:
        model = args.model or client.first_model()
        terminal.hint(f"profiling {model} for {args.seconds:g} s …")
        _fetch(client, model, args, path)
    found = hotspots(path.read_bytes())
    if args.json:
        shown = [asdict(spot) for spot in found[:NUM_SHOWN]]
        terminal.print_json({"model": model, "file": str(path), "hotspots": shown})
    else:
        _print(found, terminal)
        terminal.print(f"{path} opens in {VIEWERS[args.kind]}")
    return 0


def _fetch(client: ServerClient, model: str, args: Namespace, path: Path) -> None:
    """The file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            client.profile(model, args.seconds, args.kind, out)
        temporary.replace(path)
    except OSError as error:
        raise ServerError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _print(found: list[Hotspot], terminal: Terminal) -> None:
    if not found:
        terminal.hint("nothing was computed meanwhile; send requests while the profile is taken")
        return
    rows = [
        [f"{spot.self_s:.3f}", f"{spot.share:.0%}", str(spot.count), spot.name] for spot in found[:NUM_SHOWN]
    ]
    terminal.table(["self s", "share", "count", "name"], rows)
