"""`helixflow bench SCENARIO`: flags to options; the load client itself lives in `inference_server.bench`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_server.cli import bench_flags, swap_flags
from inference_server.cli.arguments import DEFAULT_BASE_URL, VerbParser
from inference_server.cli.client import normalised
from inference_server.cli.failures import UsageError
from inference_server.cli.terminal import Terminal

if TYPE_CHECKING:
    from inference_server.bench.options import LoadOptions, ReportOptions, TargetOptions

DESCRIPTION = """\
Measure an OpenAI-compatible server, ours or another's.

  serve       one load against a running server: closed loop, or open loop at a rate
  latency     one request after the other
  throughput  a closed loop at several numbers of streams
  startup     how long `helixflow serve` takes to its first answer, cold and warm
  swap        more models than fit in memory: what a swap takes, and how many there are"""

_SERVE = """\
Send one load to an OpenAI-compatible server, ours or another's.

Closed loop: --max-concurrency requests at once, the next starts when one ends. Open loop: requests arrive
at --request-rate, whatever the server does. With neither, all are sent at once."""
_LATENCY = "Measure one request after the other: what a user gets from a server that has nothing else to do."
_THROUGHPUT = """\
Measure a closed loop at several numbers of streams, each as many requests at once as its number says.
Answers are --output-len long whatever the model says, unless --no-ignore-eos is given."""
_STARTUP = """\
Start `helixflow serve` and measure the time from the start of its process to /health/live, to readiness
(preloaded models are in memory) and to the first answered chat.

A cold start finds an empty cache folder, in which only downloads are kept: models are converted and kernels
compiled anew. A warm start finds what earlier starts left in --cache-dir."""

_SWAP = """\
Measure a server whose models do not all fit in memory: how long a cold load and a wake take to the first
token, and under three traces how often models are swapped and how long requests wait for their first token.

  ping-pong  models in turn, one more than fit
  burst      all requests at once, models in turn
  zipf       a few models get most requests, which arrive at random; one trace for each seed

Without --base-url each trial starts a `helixflow serve` of its own, on the CPU, with --num-models entries on
one source and a memory budget for exactly --num-resident of them; and does it again with plain LRU: no
collation, no minimum residency. A load is wasted if its model left again without an answer."""

_EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "serve": """\
  helixflow bench serve --max-concurrency 16 --num-prompts 64
  helixflow bench serve --request-rate 4 --goodput ttft:500 tpot:50 --save-result result.json""",
        "latency": """\
  helixflow bench latency
  helixflow bench latency --start --config models.yaml --plot latency.html""",
        "throughput": """\
  helixflow bench throughput --levels 1 4 16 32
  helixflow bench throughput --base-url http://127.0.0.1:8080 --save-result result.json""",
        "startup": """\
  helixflow bench startup
  helixflow bench startup --config models.yaml --model smollm2-135m-instruct --num-iters-warm 5""",
        "swap": """\
  helixflow bench swap --quick
  helixflow bench swap --traces zipf --seeds 1 2 3 4 5 --save-result swap.json
  helixflow bench swap --base-url http://127.0.0.1:8000 --names a b c --num-resident 2""",
    }
)


def add_arguments(parser: VerbParser) -> None:
    """A parser for each scenario; flags have vLLM's names where it has them."""
    descriptions = {
        "serve": _SERVE,
        "latency": _LATENCY,
        "throughput": _THROUGHPUT,
        "startup": _STARTUP,
        "swap": _SWAP,
    }
    branches = parser.add_branches("scenario", descriptions)
    for name, branch in branches.items():
        branch.epilog = f"examples:\n{_EXAMPLES[name]}"
        if name == "startup":
            bench_flags.add_startup(branch)
        elif name == "swap":
            swap_flags.add_swap(branch)
        else:
            bench_flags.add_target(branch)
            bench_flags.add_load(branch, name)
        bench_flags.add_report(branch, with_metrics=name not in ("startup", "swap"), with_plot=name != "swap")


def run(args: Namespace, terminal: Terminal) -> int:
    """Hands checked options to the load client; the exit status is 1 if a request failed."""
    runs: Mapping[str, Callable[[Namespace, Terminal], int]] = {
        "serve": _run_load,
        "latency": _run_load,
        "throughput": _run_throughput,
        "startup": _run_startup,
        "swap": _run_swap,
    }
    return runs[args.scenario](args, terminal)


def _run_load(args: Namespace, terminal: Terminal) -> int:
    from inference_server.bench import run_serve

    return run_serve(_target(args, terminal), _load(args), _report(args))


def _run_throughput(args: Namespace, terminal: Terminal) -> int:
    from inference_server.bench import run_throughput

    return run_throughput(
        _target(args, terminal),
        _load(args),
        _report(args),
        levels=args.levels,
        requests_per_stream=args.requests_per_stream,
    )


def _run_startup(args: Namespace, terminal: Terminal) -> int:
    from inference_server.bench import run_startup
    from inference_server.bench.options import StartupOptions
    from inference_server.config.settings import default_cache_dir

    if args.num_iters_cold + args.num_iters_warm == 0:
        raise UsageError("nothing to do: both --num-iters-cold and --num-iters-warm are 0", "helixflow bench")
    options = StartupOptions(
        model=args.model,
        api_key=terminal.env.get("HELIXFLOW_API_KEY") or None,
        server_flags=_server_flags(args),
        cache_dir=Path(args.cache_dir or terminal.env.get("HELIXFLOW_CACHE") or default_cache_dir()),
        num_cold=args.num_iters_cold,
        num_warm=args.num_iters_warm,
    )
    return run_startup(options, _report(args))


def _run_swap(args: Namespace, terminal: Terminal) -> int:
    from inference_server.bench import run_swap

    return run_swap(swap_flags.swap_options(args, terminal), _report(args))


def _target(args: Namespace, terminal: Terminal) -> TargetOptions:
    from inference_server.bench.options import TargetOptions

    if args.start and args.base_url:
        raise UsageError("--start measures a server of its own; leave out --base-url", f"{_prog(args)}")
    if args.config and not args.start:
        raise UsageError("--config is for the server that --start starts", f"{_prog(args)}")
    address = args.base_url or terminal.env.get("HELIXFLOW_BASE_URL") or DEFAULT_BASE_URL
    return TargetOptions(
        base_url=None if args.start else normalised(address),
        model=args.model,
        api_key=args.api_key or terminal.env.get("HELIXFLOW_API_KEY") or None,
        server_flags=_server_flags(args),
    )


def _load(args: Namespace) -> LoadOptions:
    """The load; a scenario that lacks a flag leaves its default."""
    from inference_server.bench.options import LoadOptions

    return LoadOptions(
        num_prompts=getattr(args, "num_prompts", 1),
        max_concurrency=1 if args.scenario == "latency" else getattr(args, "max_concurrency", None),
        request_rate=getattr(args, "request_rate", float("inf")),
        burstiness=getattr(args, "burstiness", 1.0),
        prefix_len=args.random_prefix_len,
        input_len=args.random_input_len,
        output_len=args.output_len,
        ignore_eos=args.ignore_eos,
        seed=args.seed,
    )


def _report(args: Namespace) -> ReportOptions:
    from inference_server.bench.options import METRICS, ReportOptions

    goals = (goal.partition(":") for goal in getattr(args, "goodput", ()))
    named, plot = getattr(args, "percentile_metrics", None), getattr(args, "plot", None)
    return ReportOptions(
        metrics=tuple(dict.fromkeys(named.split(","))) if named else METRICS,
        goals_ms={metric: float(limit) for metric, _, limit in goals},
        as_json=args.json,
        save_result=Path(args.save_result) if args.save_result else None,
        plot=Path(plot) if plot else None,
    )


def _server_flags(args: Namespace) -> tuple[str, ...]:
    return ("--config", args.config) if args.config else ()


def _prog(args: Namespace) -> str:
    return f"helixflow bench {args.scenario}"
