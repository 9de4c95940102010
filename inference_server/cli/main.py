"""`helixflow VERB …`: finds the verb, runs it, and turns what goes wrong into a message and an exit status.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. It imports a verb only
when it is asked for, so that the server is up quickly.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, cast

from inference_server import __version__
from inference_server.cli.arguments import VerbParser
from inference_server.cli.failures import ServerError, UsageError
from inference_server.cli.terminal import Terminal
from inference_server.config.kinds import did_you_mean
from inference_server.errors import ConfigError, FetchFailed, HelixFlowError

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
VERBS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "serve": ("inference_server.cli.serve", "serve models over an OpenAI-compatible HTTP interface"),
        "chat": ("inference_server.cli.chat", "talk to a model of a running server"),
        "list": ("inference_server.cli.list", "list the configured models, or those of a running server"),
        "pull": (
            "inference_server.cli.pull",
            "fetch a model into the cache, so that its first load is quick",
        ),
        "ps": ("inference_server.cli.ps", "show what a running server has in memory, once or live"),
        "show": ("inference_server.cli.show", "show one model: entry, files, limits, state"),
        "plan": ("inference_server.cli.plan", "show what models take in memory, and who would leave for one"),
        "load": ("inference_server.cli.load", "bring a model of a running server into memory"),
        "profile": ("inference_server.cli.profile", "see where the time of a running model goes"),
        "stop": ("inference_server.cli.stop", "take a model of a running server out of memory"),
        "rm": ("inference_server.cli.rm", "delete what the cache keeps for a model"),
        "check-config": ("inference_server.cli.check_config", "check models.yaml, environment and flags"),
        "bench": ("inference_server.cli.bench", "measure a server: load, latency, throughput, start"),
        "version": ("inference_server.cli.version", "show the versions of HelixFlow and what it runs on"),
    }
)


class Verb(Protocol):
    """What the module of a verb provides."""

    DESCRIPTION: str

    def add_arguments(self, parser: VerbParser) -> None:
        """Declares the verb's flags."""

    def run(self, args: Namespace, terminal: Terminal) -> int:
        """Does it; returns the exit status."""


def main(argv: Sequence[str] | None = None, terminal: Terminal | None = None) -> int:
    """Runs one command line and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminal = terminal or Terminal.of_process()
    try:
        return _dispatch(arguments, terminal)
    except UsageError as error:
        terminal.error(error.message)
        terminal.hint(f"try: {error.program} --help")
        return WRONG_USAGE
    except ConfigError as error:
        terminal.error(error.message)
        return FAILED if isinstance(error, FetchFailed) else WRONG_USAGE
    except (HelixFlowError, ServerError) as error:
        terminal.error(error.message)
        return FAILED
    except KeyboardInterrupt:
        terminal.hint("\ninterrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()


def _dispatch(arguments: Sequence[str], terminal: Terminal) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if name in ("-h", "--help", "help") and not rest:
        terminal.print(_overview(terminal))
        return DONE
    if name == "help":
        name, rest = rest[0], ["--help"]
    if name == "--version":
        terminal.print(f"helixflow {__version__}")
        return DONE
    if not name:
        raise UsageError("no command given", "helixflow")
    if name not in VERBS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, VERBS)}", "helixflow")
    verb = cast(Verb, importlib.import_module(VERBS[name][0]))
    parser = VerbParser(f"helixflow {name}", verb.DESCRIPTION, terminal)
    verb.add_arguments(parser)
    args = parser.parse(rest)
    return DONE if args is None else verb.run(args, terminal)


def _overview(terminal: Terminal) -> str:
    width = max(map(len, VERBS)) + 3
    verbs = "\n".join(
        f"  {terminal.bold(name.ljust(width))}{summary}" for name, (_, summary) in VERBS.items()
    )
    return (
        "usage: helixflow COMMAND …\n\n"
        "Many Hugging Face models, one memory budget, one OpenAI-compatible server.\n\n"
        f"{terminal.bold('commands')}\n{verbs}\n\n"
        "`helixflow COMMAND --help` explains one. Start with: helixflow serve"
    )


def _reader_left() -> int:
    """Whoever read our output is gone (`helixflow list | head -1`); Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
