"""`helixflow chat [MODEL]`: talk to a model of a running server, line by line or with one message.

It knows flags, prompts and slash commands; what a turn is knows `conversation.py`.
"""

from __future__ import annotations

from argparse import Namespace

from inference_server.cli.arguments import DEFAULT_BASE_URL, VerbParser, add_client_flags, client_of
from inference_server.cli.client import ServerClient
from inference_server.cli.conversation import Conversation
from inference_server.cli.failures import UsageError
from inference_server.cli.terminal import Terminal
from inference_server.config.kinds import did_you_mean
from inference_server.config.model_keys import SAMPLING_KEYS

DESCRIPTION = """\
Talk to a model of a running server. Without MODEL: to the first one that is loaded, else the first listed.

In the conversation, /clear forgets it, /exit or Ctrl-D leaves, and Ctrl-C stops an answer. If standard
input is not a terminal, all of it is one message, and only the answer is printed."""

HELP = """\
/clear   forget the conversation so far
/exit    leave (or Ctrl-D)
/help    show this
Ctrl-C   stop the answer"""
COMMANDS = ("/clear", "/exit", "/help")
PROMPT = ">>> "
_OPTIONS = ("temperature", "top_p", "top_k", "max_tokens")


def add_arguments(parser: VerbParser) -> None:
    """Where the server is, what to say, how to sample."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="name or alias of a model on the server")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    parser.add_argument("--system", metavar="TEXT", help="system message that opens the conversation")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="send one message, print the answer, leave")
    for name in _OPTIONS:
        key = SAMPLING_KEYS[name]
        summary = "longest answer, in tokens" if name == "max_tokens" else key.summary
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=key.kind.metavar, help=summary)
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed makes the same choices")


def run(args: Namespace, terminal: Terminal) -> int:
    """Talks until the user leaves; 1 if a single message could not be answered."""
    options = _options(args)
    base_url, api_key = client_of(args, terminal)
    with ServerClient(base_url, api_key) as client:
        model = args.model or client.first_model()
        conversation = Conversation(client, terminal, model, options, args.system)
        if args.prompt is not None:
            return _answer_one(conversation, args.prompt)
        if not terminal.is_interactive:
            return _answer_one(conversation, terminal.stdin.read())
        terminal.hint(f"{model} at {base_url} · /help lists what you can do, /exit leaves")
        return _loop(conversation, terminal)


def _options(args: Namespace) -> dict[str, object]:
    options: dict[str, object] = {}
    for name in _OPTIONS:
        text = getattr(args, name)
        if text is not None:
            try:
                options[name] = SAMPLING_KEYS[name].kind.parse(text)
            except ValueError as error:
                raise UsageError(f"--{name.replace('_', '-')}: {error}", "helixflow chat") from None
    if args.seed is not None:
        options["seed"] = args.seed
    return options


def _answer_one(conversation: Conversation, text: str) -> int:
    if not text.strip():
        raise UsageError("the message is empty", "helixflow chat")
    return 0 if conversation.say(text) else 1


def _loop(conversation: Conversation, terminal: Terminal) -> int:
    while True:
        try:
            text = terminal.ask(PROMPT).strip()
        except EOFError:
            terminal.print()
            return 0
        except KeyboardInterrupt:
            terminal.print()
            terminal.hint("/exit or Ctrl-D leaves")
            continue
        if text == "/exit":
            return 0
        if text.startswith("/"):
            _command(text, conversation, terminal)
        elif text:
            conversation.say(text)


def _command(text: str, conversation: Conversation, terminal: Terminal) -> None:
    if text == "/clear":
        conversation.clear()
        terminal.hint("the conversation is forgotten")
    elif text == "/help":
        terminal.print(HELP)
    else:
        hint = did_you_mean(text, COMMANDS) or "; /help lists what there is"
        terminal.error(f"unknown command {text.split()[0]}{hint}")
