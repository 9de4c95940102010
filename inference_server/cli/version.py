"""`helixflow version`: the versions of HelixFlow and of what it runs on, without importing any of it."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib import metadata

from inference_server import __version__
from inference_server.cli.arguments import VerbParser, add_json_flag
from inference_server.cli.terminal import Terminal

DESCRIPTION = "Show the versions of HelixFlow and of what it runs on."
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "uvicorn")


def add_arguments(parser: VerbParser) -> None:
    """Only --json."""
    add_json_flag(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints them."""
    versions: dict[str, str | None] = {name: _installed(name) for name in PACKAGES}
    ours = {"helixflow": __version__, "python": platform.python_version(), "platform": platform.platform()}
    versions = {**ours, **versions}
    if args.json:
        terminal.print_json(versions)
    else:
        for name, version in versions.items():
            terminal.print(f"{name.ljust(14)}{version or 'not installed'}")
    return 0


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
