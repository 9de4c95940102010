"""Flags: the parser of one verb, and the flags that come from the table of settings.

It knows argparse and the settings' names, not what a verb does with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import msgspec

from inference_server.cli.failures import UsageError
from inference_server.cli.terminal import Terminal
from inference_server.config.kinds import did_you_mean
from inference_server.config.setting_keys import SETTINGS, Setting, flag_name
from inference_server.config.settings import Settings
from inference_server.config.units import format_bytes, format_duration

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
_HOME_DEFAULTS = {"cache_dir": "~/.cache/helixflow"}


class VerbParser(argparse.ArgumentParser):
    """A parser that raises UsageError and names the nearest flag; it never exits the process."""

    def __init__(self, program: str, description: str, terminal: Terminal) -> None:
        super().__init__(
            prog=program,
            description=description,
            allow_abbrev=False,
            add_help=False,
            usage=f"{program} [flags]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._terminal = terminal
        self._branches: dict[str, VerbParser] = {}
        self.add_argument("-h", "--help", action="store_true", help="show this help")

    def add_branches(self, dest: str, descriptions: Mapping[str, str]) -> Mapping[str, VerbParser]:
        """Kinds of the verb with flags of their own: `helixflow VERB KIND …`. `dest` names the kind."""
        self.add_argument(dest, choices=tuple(descriptions), help=f"`{self.prog} KIND --help` explains one")
        for name, description in descriptions.items():
            branch = VerbParser(f"{self.prog} {name}", description, self._terminal)
            branch.set_defaults(**{dest: name})
            self._branches[name] = branch
        return self._branches

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """The parsed flags; None if help was asked for and shown.

        Raises:
            UsageError: a flag is unknown, incomplete or missing.
        """
        if arguments and arguments[0] in self._branches:
            return self._branches[arguments[0]].parse(arguments[1:])
        self.usage = " ".join([self.prog, *self._positionals_shown(), "[flags]"])
        if _asks_for_help(arguments):
            self._terminal.print(self.format_help().rstrip())
            return None
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            self._refuse(unknown[0])
        return args

    def _positionals_shown(self) -> list[str]:
        found = [action for action in self._actions if not action.option_strings]
        names = [str(a.metavar or "|".join(a.choices or ())) for a in found]
        return [f"[{name}]" if a.nargs == "?" else name for a, name in zip(found, names, strict=True)]

    def error(self, message: str) -> NoReturn:
        """What argparse calls on wrong usage."""
        raise UsageError(message, self.prog)

    def _refuse(self, argument: str) -> NoReturn:
        flag = argument.partition("=")[0]
        if not flag.startswith("-"):
            raise UsageError(f"unexpected argument {argument!r}", self.prog)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        raise UsageError(f"unknown flag {flag}{did_you_mean(flag, known)}", self.prog)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Adds the flags of these settings (default: of all), grouped as the table groups them."""
    wanted = set(SETTINGS if names is None else names) - {"model"}
    groups = dict.fromkeys(row.group for name, row in SETTINGS.items() if name in wanted)
    for title in groups:
        group = parser.add_argument_group(title)
        for name, row in SETTINGS.items():
            if name in wanted and row.group == title:
                _add_setting(group, name, row)


def flags_of(args: argparse.Namespace) -> dict[str, object]:
    """The settings among the parsed flags; None where a flag was not given."""
    return {name: value for name, value in vars(args).items() if name in SETTINGS}


def add_client_flags(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Adds the flags by which a command finds a running server."""
    shown = f"; default: {default}" if default else ""
    parser.add_argument(
        "--base-url", metavar="URL", help=f"address of the server, also $HELIXFLOW_BASE_URL{shown}"
    )
    parser.add_argument("--api-key", metavar="KEY", help="key for the server, also $HELIXFLOW_API_KEY")


def client_of(args: argparse.Namespace, terminal: Terminal) -> tuple[str, str | None]:
    """(address, key) of the server that a command is about: flags, environment, or this machine's."""
    base_url = args.base_url or terminal.env.get("HELIXFLOW_BASE_URL") or DEFAULT_BASE_URL
    return base_url, args.api_key or terminal.env.get("HELIXFLOW_API_KEY")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_setting(group: argparse._ArgumentGroup, name: str, row: Setting) -> None:
    flag, kind = flag_name(name), row.key.kind
    default = _default_of(name)
    text = row.key.summary + (f"; default: {default}" if default else "")
    if kind.schema.get("type") == "boolean":
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, dest=name, action=action, default=None, help=_escaped(text))
    else:
        group.add_argument(flag, dest=name, metavar=kind.metavar, help=_escaped(text))


def _default_of(name: str) -> str:
    """The default as a person would write it; empty if there is none."""
    if name in _HOME_DEFAULTS:
        return _HOME_DEFAULTS[name]
    value = msgspec.structs.asdict(Settings())[name]
    if value is None or value == "" or isinstance(value, bool):
        return "on" if value is True else ""
    if SETTINGS[name].key.kind.metavar == "SIZE":
        return format_bytes(value)
    return format_duration(value) if SETTINGS[name].key.kind.metavar == "DURATION" else str(value)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    before_dashes = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return "-h" in before_dashes or "--help" in before_dashes


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
