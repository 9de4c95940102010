"""`helixflow chat [MODEL]`: a conversation with a model of a running server, answers streamed.

The history lives here, in memory only; nothing of it is written anywhere.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import closing

from inference_server.cli.arguments import DEFAULT_BASE_URL, UsageError, VerbParser, add_client_flags
from inference_server.cli.terminal import Terminal
from inference_server.config.kinds import Kind
from inference_server.config.model_keys import SAMPLING_KEYS
from inference_server.errors import HelixFlowError

DESCRIPTION = """\
Talk to a model of a running server. Without MODEL, to the first one that the server has loaded or lists.

In the conversation: /clear forgets it, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer. If standard input
is not a terminal, all of it is one message, and the answer alone is printed."""

HELP = """\
/clear   forget the conversation
/exit    leave (also Ctrl-D)
/help    this list
Ctrl-C   stop the answer"""
_OPTIONS = ("temperature", "top_p", "top_k", "max_tokens")


def add_arguments(parser: VerbParser) -> None:
    """Where the server is, and how to sample."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="name or alias of a model on the server")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    parser.add_argument("--system", metavar="TEXT", help="system message that opens the conversation")
    parser.add_argument(
        "-p", "--prompt", metavar="TEXT", help="send this one message, print the answer, leave"
    )
    for name in _OPTIONS:
        key = SAMPLING_KEYS[name]
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=key.kind.metavar, help=key.summary)
    parser.add_argument("--seed", metavar="N", type=int, help="repeat the same choices")
