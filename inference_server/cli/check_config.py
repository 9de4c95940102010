"""`helixflow check-config`: what models.yaml, environment and flags come to, and who said it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import msgspec

from inference_server.cli.arguments import VerbParser, add_json_flag, add_settings, flags_of
from inference_server.cli.configured import read_configuration
from inference_server.cli.terminal import Terminal
from inference_server.cli.values import kv_cache, model_value, shown
from inference_server.config.configuration import Configuration, check_certificate
from inference_server.config.setting_keys import SETTINGS
from inference_server.config.settings import Settings
from inference_server.config.spec import MemorySpec, ModelSpec
from inference_server.config.units import format_bytes, format_duration
from inference_server.errors import ConfigError

DESCRIPTION = """\
Check models.yaml, the HELIXFLOW_* variables and flags, and show what they come to: the models as they
would be served, and each value that is not a default with the place it comes from. Loads nothing.

Takes the flags of `helixflow serve`. Exit status 0: all is well; 2: something is wrong."""
HIDDEN = "(hidden)"
# What became a value of the memory budget or of a model, and is shown there.
SHOWN_ELSEWHERE = ("config", "model", "gpu_memory_utilization", "host_memory", "served_model_name")


def add_arguments(parser: VerbParser) -> None:
    """Those of `serve`, and --json."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for `helixflow serve`")
    add_json_flag(parser)
    add_settings(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints the tables; ConfigError goes up, unless JSON is wanted."""
    try:
        configuration = read_configuration(flags_of(args), terminal)
        check_certificate(configuration)
    except ConfigError as error:
        if not args.json:
            raise
        terminal.print_json({"ok": False, "errors": error.message.splitlines()})
        return 2
    if args.json:
        terminal.print_json(_as_json(configuration))
    else:
        _print(configuration, terminal)
    return 0


def _print(configuration: Configuration, terminal: Terminal) -> None:
    models = list(configuration.catalog.models.values())
    name = configuration.settings.config or "no models.yaml"
    count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
    terminal.print(f"{terminal.green('ok')}  {name}: {count}")
    if models:
        terminal.print()
        titles = (
            "MODEL",
            "DEVICE",
            "DTYPE",
            "QUANTIZATION",
            "CONTEXT",
            "KV CACHE",
            "KEEP ALIVE",
            "START",
            "SOURCE",
        )
        terminal.table(titles, [_model_row(spec) for spec in models])
    rows = _not_default(configuration)
    if rows:
        terminal.print()
        terminal.table(("NOT A DEFAULT", "VALUE", "FROM"), rows)


def _model_row(spec: ModelSpec) -> tuple[str, ...]:
    start = [word for word, holds in (("preload", spec.preload), ("pinned", spec.pinned)) if holds]
    return (
        spec.name,
        spec.device,
        spec.dtype,
        spec.quantization,
        str(spec.max_model_len or "model's"),
        kv_cache(spec.kv_cache),
        format_duration(spec.keep_alive_s),
        ", ".join(start) or "on demand",
        spec.source,
    )


def _not_default(configuration: Configuration) -> list[tuple[str, str, str]]:
    """(name, value, where it comes from), the server's settings first."""
    settings, memory = configuration.settings, configuration.catalog.memory
    found: list[tuple[str, str, str, str]] = []  # name, value, default, place
    for name, where in configuration.settings_origins.items():
        if name not in SHOWN_ELSEWHERE:
            found.append((f"server.{name}", _setting(settings, name), _setting(Settings(), name), where))
    for name, where in configuration.memory_origins.items():
        found.append((f"memory.{name}", _budget(memory, name), _budget(MemorySpec(), name), where))
    for spec in configuration.catalog.models.values():
        plain = ModelSpec(name="", source="")
        for key, where in configuration.model_origins[spec.name].items():
            default = "" if key == "preload" else model_value(plain, key)
            found.append((f"{spec.name}.{key}", model_value(spec, key), default, where))
    return [(name, value, where) for name, value, default, where in found if value != default]


def _setting(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    return HIDDEN if SETTINGS[name].key.secret and value is not None else shown(value)


def _budget(memory: MemorySpec, kind: str) -> str:
    share, size = getattr(memory, f"{kind}_fraction"), getattr(memory, f"{kind}_bytes")
    if size is not None:
        return format_bytes(size)
    return f"{share:.0%}" if share is not None else "what is free"


def _as_json(configuration: Configuration) -> dict[str, Any]:
    settings = msgspec.to_builtins(configuration.settings)
    for name, row in SETTINGS.items():
        if row.key.secret and settings[name] is not None:
            settings[name] = HIDDEN
    return {
        "ok": True,
        "settings": settings,
        "memory": msgspec.to_builtins(configuration.catalog.memory),
        "models": [msgspec.to_builtins(spec) for spec in configuration.catalog.models.values()],
        "origins": {
            "settings": dict(configuration.settings_origins),
            "memory": dict(configuration.memory_origins),
            "models": {name: dict(found) for name, found in configuration.model_origins.items()},
        },
    }
