"""`helixflow plan [MODEL]`: what models take in memory, worked out from their files alone."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_server.cli.arguments import (
    DEFAULT_BASE_URL,
    VerbParser,
    add_client_flags,
    add_json_flag,
    add_settings,
    client_of,
    flags_of,
)
from inference_server.cli.configured import read_configuration
from inference_server.cli.failures import ServerError
from inference_server.cli.terminal import Terminal
from inference_server.config.catalog import ModelSpec
from inference_server.config.configuration import Configuration, find_model
from inference_server.config.units import format_bytes
from inference_server.errors import HelixFlowError

if TYPE_CHECKING:
    from inference_server.model_manager.model_plan import ModelPlan

DESCRIPTION = """\
Show what models take in memory: weights after quantization, KV cache, and what their workers need beside them
(measured at an earlier load, else estimated). It is worked out from the models' files and this machine;
nothing is fetched or loaded.

With MODEL, tell more of that one, and if a server runs, which models would leave its memory for it."""
TITLES = ("MODEL", "DEVICE", "QUANTIZATION", "WEIGHTS", "KV CACHE", "OTHER", "IN ALL")
NOT_HERE = "its files are not here; get them with: helixflow pull"


@dataclass(frozen=True, slots=True)
class Outlook:
    """One model's plan on this machine, or why there is none."""

    spec: ModelSpec
    plan: ModelPlan | None
    reason: str = ""


def add_arguments(parser: VerbParser) -> None:
    """Which model, and where to look."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="default: all of models.yaml, in a table")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    add_json_flag(parser)
    add_settings(parser, ["config", "cache_dir", "max_num_seqs", "max_num_batched_tokens"])


def run(args: Namespace, terminal: Terminal) -> int:
    """Prints the plans; 1 if a model cannot be had in this budget."""
    flags = {name: value for name, value in flags_of(args).items() if name != "model"}
    configuration = read_configuration(flags, terminal)
    budget = _budget(configuration)
    if args.model is None:
        outlooks = [_outlook(spec, configuration, budget) for spec in configuration.catalog.models.values()]
        return _all(outlooks, budget, args, terminal)
    outlook = _outlook(find_model(configuration.catalog, args.model, Path()), configuration, budget)
    return _one(outlook, budget, args, terminal)


def _budget(configuration: Configuration) -> dict[str, int]:
    from inference_server.model_manager.budget import budget_bytes
    from inference_server.model_manager.devices import discover_devices

    return budget_bytes(configuration.catalog.memory, discover_devices())


def _outlook(spec: ModelSpec, configuration: Configuration, budget: Mapping[str, int]) -> Outlook:
    from inference_server.checkpoints.kept import model_folder
    from inference_server.model_manager.devices import cpu_flags
    from inference_server.model_manager.overheads import OverheadStore
    from inference_server.model_manager.plan import plan_model

    cache_dir = Path(configuration.settings.cache_dir)
    try:
        folder = model_folder(spec.source, spec.revision, cache_dir)
        if folder is None:
            return Outlook(spec, None, f"{NOT_HERE} {spec.name}")
        overheads = OverheadStore(cache_dir)
        plan = plan_model(spec, folder, configuration.settings, budget, cpu_flags(), overheads)
    except HelixFlowError as error:
        return Outlook(spec, None, error.message)
    return Outlook(spec, plan)


def _is_too_large(outlook: Outlook, budget: Mapping[str, int]) -> bool:
    from inference_server.model_manager.model_plan import fits

    return outlook.plan is not None and not fits(outlook.plan.bytes_by_device, budget)


# ---------------------------------------------------------------- all models


def _all(outlooks: Sequence[Outlook], budget: Mapping[str, int], args: Namespace, terminal: Terminal) -> int:
    too_large = [outlook.spec.name for outlook in outlooks if _is_too_large(outlook, budget)]
    if args.json:
        plans = [_fields(outlook) for outlook in outlooks]
        terminal.print_json({"models": plans, "budget_bytes": dict(budget), "too_large": too_large})
        return int(bool(too_large))
    terminal.table(TITLES, [_row(outlook) for outlook in outlooks])
    for device, num_bytes in budget.items():
        planned = [o.plan.bytes_by_device.get(device, 0) for o in outlooks if o.plan is not None]
        terminal.print(
            f"{device}: a budget of {format_bytes(num_bytes)}; all of these take {format_bytes(sum(planned))}"
        )
    for outlook in outlooks:
        if outlook.plan is None:
            terminal.hint(f"{outlook.spec.name}: {outlook.reason}")
    for name in too_large:
        terminal.error(f"{name} is larger than the whole budget")
    return int(bool(too_large))


def _row(outlook: Outlook) -> tuple[str, ...]:
    plan = outlook.plan
    if plan is None:
        return (outlook.spec.name, "-", "-", "-", "-", "-", "-")
    total = sum(plan.bytes_by_device.values())
    other = total - plan.weights_bytes - plan.kv_cache_bytes
    sizes = (plan.weights_bytes, plan.kv_cache_bytes, other, total)
    return (outlook.spec.name, plan.device, plan.load.quantization, *map(_size, sizes))


def _size(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else "-"


# ---------------------------------------------------------------- one model


def _one(outlook: Outlook, budget: Mapping[str, int], args: Namespace, terminal: Terminal) -> int:
    base_url, api_key = client_of(args, terminal)
    there = _forecast(outlook.spec.name, base_url, api_key)
    if args.json:
        forecast = there if isinstance(there, dict) else None
        terminal.print_json(_fields(outlook) | {"budget_bytes": dict(budget), "server": forecast})
        return int(_is_too_large(outlook, budget))
    terminal.print(terminal.bold(outlook.spec.name))
    if outlook.plan is None:
        terminal.print(f"  {terminal.foreign(outlook.reason)}")
    else:
        _section("plan", _how(outlook.plan), terminal)
        _section("memory", _bytes(outlook.plan, budget), terminal)
    _section(f"on {base_url}", _there(there), terminal)
    if _is_too_large(outlook, budget):
        terminal.error(f"{outlook.spec.name} is larger than the whole budget of this machine")
        return 1
    return 0


def _how(plan: ModelPlan) -> dict[str, str]:
    load = plan.load
    kernels = "native CPU kernels" if load.kernels == "native" else "torch"
    return {
        "device": plan.device if load.scripted else f"{plan.device}, {kernels}",
        "quantization": f"{load.quantization} ({plan.why})",
        "dtype": load.dtype,
        "context": f"{plan.max_model_len} tokens",
    }


def _bytes(plan: ModelPlan, budget: Mapping[str, int]) -> dict[str, str]:
    known = "measured" if plan.is_measured else "estimated"
    rows = {"weights": format_bytes(plan.weights_bytes)}
    if plan.kv_cache_bytes:
        rows["KV cache"] = f"{format_bytes(plan.kv_cache_bytes)} for {plan.load.kv_cache_tokens} tokens"
    rows["largest step"] = f"{format_bytes(plan.workspace_bytes)} ({known})"
    rows["worker"] = f"{format_bytes(plan.context_bytes)} ({known})"
    for device, num_bytes in plan.bytes_by_device.items():
        whole = format_bytes(budget.get(device, 0))
        rows[f"in all on {device}"] = f"{format_bytes(num_bytes)} of a budget of {whole}"
    return rows


def _forecast(name: str, base_url: str, api_key: str | None) -> dict[str, Any] | str:
    """What a request would meet there, or why nobody tells."""
    from inference_server.cli.client import NO_SERVER, ServerClient

    try:
        with ServerClient(base_url, api_key) as client:
            return dict(client.forecast(name))
    except ServerError as error:
        return "no server answers there" if error.code == NO_SERVER else error.message


def _there(forecast: dict[str, Any] | str) -> dict[str, str]:
    if isinstance(forecast, str):
        return {"": forecast}
    rows = {str(forecast.get("outcome", "unknown")): str(forecast.get("message", ""))}
    for victim in forecast.get("victims") or ():
        how = "goes to sleep" if victim.get("sleeps") else "is unloaded"
        rows[f"  {victim.get('model')}"] = how
    for use in forecast.get("memory") or ():
        reserved, budget = use.get("reserved_bytes", 0), use.get("budget_bytes", 0)
        rows[str(use.get("device"))] = f"{format_bytes(reserved)} of {format_bytes(budget)} reserved"
    return rows


def _section(title: str, rows: Mapping[str, str], terminal: Terminal) -> None:
    terminal.print()
    terminal.print(terminal.bold(title))
    width = max(map(len, rows), default=0)
    for key, value in rows.items():
        shown = terminal.foreign(value)
        terminal.print(f"  {key.ljust(width)}  {shown}" if key else f"  {shown}")


def _fields(outlook: Outlook) -> dict[str, Any]:
    from inference_server.model_manager.forecast import plan_fields

    plan = None if outlook.plan is None else plan_fields(outlook.plan)
    return {"model": outlook.spec.name, "plan": plan, "reason": outlook.reason or None}
