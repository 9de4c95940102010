"""The flags of `helixflow bench swap`, and the options that they make."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from inference_server.cli.arguments import VerbParser
from inference_server.cli.bench_flags import CONFIG_HELP, add_count, typed
from inference_server.cli.client import normalised
from inference_server.cli.failures import UsageError
from inference_server.cli.terminal import Terminal
from inference_server.config import kinds

if TYPE_CHECKING:
    from inference_server.bench.options import SwapOptions
    from inference_server.config.spec import ModelSpec

TRACES = ("ping-pong", "burst", "zipf")
MAX_MODEL_LEN = 1024  # what a request of the traces needs is far below; a small KV cache is a small model
NUM_KV_TOKENS = 8192
_PROG = "helixflow bench swap"


def add_swap(parser: VerbParser) -> None:
    """Which models, how many of them, and what is asked of them."""
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    parser.add_argument(
        "--model", metavar="MODEL", help="the entry or source of all models; default: the file's first"
    )
    parser.add_argument("--base-url", metavar="URL", help="measure this server instead, as it is configured")
    parser.add_argument("--api-key", metavar="KEY", help="for --base-url; better in $HELIXFLOW_API_KEY")
    parser.add_argument("--names", nargs="+", metavar="NAME", default=[], help="with --base-url: its models")
    group = parser.add_argument_group("Models")
    add_count(group, "--num-models", 6, "models, without --base-url", minimum=2)
    add_count(group, "--num-resident", 2, "how many of them fit in memory")
    _add_load(parser)


def _add_load(parser: VerbParser) -> None:
    group = parser.add_argument_group("Load")
    seed, count = typed(kinds.integer(0, 2**31)), typed(kinds.integer(1, 1_000_000))
    positive = typed(kinds.number(0, 100, above=True))
    group.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES), help="default: all")
    group.add_argument("--seeds", type=seed, nargs="+", metavar="N", help="of Zipf; default: 1 2 3 4 5")
    group.add_argument("--num-prompts", type=count, metavar="N", help="requests of Zipf; default: 600")
    group.add_argument("--num-rounds", type=count, metavar="N", help="loads of each model; default: 3")
    group.add_argument("--quick", action="store_true", help="1 seed, 60 requests, 1 round")
    group.add_argument("--exponent", type=positive, default=1.0, metavar="S", help="of Zipf; default: 1")
    group.add_argument(
        "--load",
        type=positive,
        default=0.8,
        metavar="X",
        help="arrivals as a share of what the resident models serve; default: 0.8",
    )
    add_count(group, "--streams", 16, "requests at once while that is measured")
    add_count(group, "--random-input-len", 50, "about how many prompt tokens")
    add_count(group, "--output-len", 32, "answer tokens")


def swap_options(args: Namespace, terminal: Terminal) -> SwapOptions:
    """The options that the flags make.

    Raises:
        UsageError: flags contradict each other.
        ConfigError: models.yaml is wrong or has no models.
    """
    from inference_server.bench.options import SwapOptions

    names = _checked_names(args)
    own = args.base_url is None
    return SwapOptions(
        base_url=None if own else normalised(args.base_url),
        names=names,
        api_key=args.api_key or terminal.env.get("HELIXFLOW_API_KEY") or None,
        entry=_entry(_chosen(args, terminal)) if own else {},
        num_models=args.num_models if own else len(names),
        num_resident=args.num_resident,
        traces=tuple(dict.fromkeys(args.traces)),
        seeds=tuple(dict.fromkeys(args.seeds or ((1,) if args.quick else (1, 2, 3, 4, 5)))),
        num_prompts=args.num_prompts or (60 if args.quick else 600),
        num_rounds=args.num_rounds or (1 if args.quick else 3),
        exponent=args.exponent,
        load=args.load,
        streams=args.streams,
        input_len=args.random_input_len,
        output_len=args.output_len,
    )


def _checked_names(args: Namespace) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(args.names))
    if args.base_url is None and names:
        raise UsageError("--names are the models of the server at --base-url; give it, too", _PROG)
    if args.base_url is not None and len(names) < 2:
        raise UsageError("--base-url needs two or more of that server's models: --names a b c", _PROG)
    if args.base_url is not None and (args.config or args.model):
        raise UsageError("--config and --model are for a server of its own; leave out --base-url", _PROG)
    num_models = len(names) or args.num_models
    if args.num_resident >= num_models:
        raise UsageError(f"{args.num_resident} of {num_models} models fit: nothing would be swapped", _PROG)
    return names


def _chosen(args: Namespace, terminal: Terminal) -> ModelSpec:
    from inference_server.config.configuration import find_model, load_configuration
    from inference_server.errors import ConfigError

    catalog = load_configuration(env=terminal.env, flags={"config": args.config}).catalog
    if args.model is not None:
        return find_model(catalog, args.model)
    first = next(iter(catalog.models.values()), None)
    if first is None:
        raise ConfigError("there is no model to measure: configure one in models.yaml, or give --model")
    return first


def _entry(spec: ModelSpec) -> dict[str, Any]:
    """The keys of a models.yaml entry that loads `spec`'s weights, with a small context, on the CPU."""
    kept = ("source", "revision", "sha256", "quantization", "kernels", "dtype")
    allowed = ("trust_remote_code", "allow_pickle")
    entry = {name: value for name in (*kept, *allowed) if (value := getattr(spec, name))}
    length = min(spec.max_model_len or MAX_MODEL_LEN, MAX_MODEL_LEN)
    return {**entry, "device": "cpu", "max_model_len": length, "kv_cache": {"tokens": NUM_KV_TOKENS}}
