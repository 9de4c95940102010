"""The flags of `helixflow bench`, in groups that the scenarios share, and how their values are read."""

from __future__ import annotations

from argparse import ArgumentTypeError, BooleanOptionalAction, _ArgumentGroup
from collections.abc import Callable
from typing import Any

from inference_server.cli.arguments import DEFAULT_BASE_URL, VerbParser, add_client_flags
from inference_server.config import kinds
from inference_server.config.kinds import Kind

METRICS = ("ttft", "tpot", "itl", "e2el")
MAX_COUNT = 10_000_000
CONFIG_HELP = "models.yaml of the server that is started; default: ./models.yaml"


def add_target(parser: VerbParser) -> None:
    """Which server and model."""
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    parser.add_argument("--model", metavar="NAME", help="model to ask for; default: the server's first")
    parser.add_argument(
        "--start", action="store_true", help="start `helixflow serve` on a free port, and end it afterwards"
    )
    parser.add_argument("--config", metavar="FILE", help=f"with --start: {CONFIG_HELP}")


def add_load(parser: VerbParser, scenario: str) -> None:
    """What to send, and how fast."""
    group = parser.add_argument_group("Load")
    if scenario == "throughput":
        _add_levels(group)
    else:
        add_count(group, "--num-prompts", 16 if scenario == "latency" else 64, "requests to send")
    if scenario == "serve":
        _add_pace(group)
    add_count(group, "--random-prefix-len", 0, "tokens of a system prompt that all share", minimum=0)
    add_count(group, "--random-input-len", 150, "about how many prompt tokens")
    add_count(group, "--output-len", 64, "answer tokens")
    fixed = scenario != "serve"
    group.add_argument(
        "--ignore-eos",
        action=BooleanOptionalAction,
        default=fixed,
        help=f"answers go on to --output-len; default: {'on' if fixed else 'off'}",
    )
    group.add_argument(
        "--seed", type=typed(kinds.integer(0, 2**31)), default=0, metavar="N", help="of the prompts"
    )


def _add_levels(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--levels",
        type=typed(kinds.integer(1, MAX_COUNT)),
        nargs="+",
        default=[1, 4, 16, 32],
        metavar="N",
        help="numbers of streams; default: 1 4 16 32",
    )
    add_count(group, "--requests-per-stream", 4, "requests of each stream, one after the other")


def _add_pace(group: _ArgumentGroup) -> None:
    count, positive = typed(kinds.integer(1, MAX_COUNT)), typed(kinds.number(0, 1e9, above=True))
    group.add_argument(
        "--max-concurrency", type=count, metavar="N", help="requests at once; default: no limit"
    )
    group.add_argument(
        "--request-rate",
        type=_rate,
        default=float("inf"),
        metavar="R",
        help="requests per second; default: inf",
    )
    group.add_argument(
        "--burstiness",
        type=positive,
        default=1.0,
        metavar="X",
        help="1: Poisson arrivals; below 1: in bursts",
    )


def add_startup(parser: VerbParser) -> None:
    """What to start and how often."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="loaded at start, as in `helixflow serve MODEL`; default: what models.yaml preloads",
    )
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    parser.add_argument(
        "--cache-dir", metavar="FOLDER", help="cache of the warm starts; default: ~/.cache/helixflow"
    )
    group = parser.add_argument_group("Starts")
    add_count(group, "--num-iters-cold", 1, "starts with an empty cache", minimum=0)
    add_count(group, "--num-iters-warm", 3, "starts with a filled cache", minimum=0)


def add_report(parser: VerbParser, *, with_metrics: bool, with_plot: bool) -> None:
    """What to tell, and where."""
    group = parser.add_argument_group("Report")
    if with_metrics:
        _add_metrics(group)
    group.add_argument("--save-result", metavar="FILE", help="also write the result as JSON to this file")
    if with_plot:
        group.add_argument(
            "--plot",
            type=_page,
            metavar="FILE.html",
            help="also write charts: one page that needs no network",
        )
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_metrics(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--goodput",
        type=_goal,
        nargs="+",
        default=[],
        metavar="METRIC:MS",
        help="count requests within these limits",
    )
    group.add_argument(
        "--percentile-metrics",
        type=_metrics,
        default=",".join(METRICS),
        metavar="LIST",
        help="metrics to report, of: " + ",".join(METRICS),
    )


def add_count(group: _ArgumentGroup, flag: str, default: int, text: str, minimum: int = 1) -> None:
    """A flag that takes a whole number."""
    count = typed(kinds.integer(minimum, MAX_COUNT))
    group.add_argument(flag, type=count, default=default, metavar="N", help=f"{text}; default: {default}")


def typed(kind: Kind) -> Callable[[str], Any]:
    """An argparse type from a kind, so that both speak alike."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse


def _rate(text: str) -> float:
    rate: float = float("inf") if text == "inf" else typed(kinds.number(0, 1e9, above=True))(text)
    return rate


def _goal(text: str) -> str:
    metric, _, limit = text.partition(":")
    if metric not in METRICS or not limit:
        raise ArgumentTypeError(
            f"expected METRIC:MS such as ttft:500 (of {', '.join(METRICS)}), got {text!r}"
        )
    typed(kinds.number(0, 1e9, above=True))(limit)
    return text


def _metrics(text: str) -> str:
    for metric in text.split(","):
        if metric not in METRICS:
            raise ArgumentTypeError(f"unknown metric {metric!r}{kinds.did_you_mean(metric, METRICS)}")
    return text


def _page(text: str) -> str:
    if not text.endswith((".html", ".htm")):
        raise ArgumentTypeError(f"expected a file name that ends in .html, got {text!r}")
    return text
