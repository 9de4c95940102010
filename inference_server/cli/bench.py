"""`helixflow bench serve`: the flags of the load client, which itself lives in `inference_server.bench`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

from inference_server.cli.arguments import DEFAULT_BASE_URL, VerbParser, add_client_flags
from inference_server.cli.client import normalised
from inference_server.cli.terminal import Terminal
from inference_server.config import kinds
from inference_server.config.kinds import Kind

DESCRIPTION = """\
Measure a running OpenAI-compatible server, ours or another's: `helixflow bench serve`.

Closed loop: --max-concurrency requests at once, the next starts when one ends. Open loop: requests arrive
at --request-rate, whatever the server does. With neither, all are sent at once."""

EPILOG = """\
examples:
  helixflow bench serve --max-concurrency 16 --num-prompts 64
  helixflow bench serve --request-rate 4 --goodput ttft:500 tpot:50 --save-result result.json"""

METRICS = ("ttft", "tpot", "itl", "e2el")
MAX_COUNT = 10_000_000


def add_arguments(parser: VerbParser) -> None:
    """What to send, how fast, and what to report; vLLM's names."""
    parser.epilog = EPILOG
    parser.add_argument("scenario", choices=("serve",), help="serve: requests over HTTP")
    add_client_flags(parser, default=DEFAULT_BASE_URL)
    parser.add_argument("--model", metavar="NAME", help="model to ask for; default: the server's first")
    _add_load(parser)
    _add_report(parser)


def _add_load(parser: VerbParser) -> None:
    group = parser.add_argument_group("Load")
    count = _typed(kinds.integer(1, MAX_COUNT))
    positive = _typed(kinds.number(0, 1e9, above=True))
    group.add_argument(
        "--num-prompts", type=count, default=64, metavar="N", help="requests to send; default: 64"
    )
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
    group.add_argument(
        "--random-input-len",
        type=count,
        default=150,
        metavar="N",
        help="about how many prompt tokens; default: 150",
    )
    group.add_argument("--output-len", type=count, default=64, metavar="N", help="answer tokens; default: 64")
    group.add_argument("--ignore-eos", action="store_true", help="answers go on to --output-len")
    group.add_argument(
        "--seed", type=_typed(kinds.integer(0, 2**31)), default=0, metavar="N", help="of the prompts"
    )


def _add_report(parser: VerbParser) -> None:
    group = parser.add_argument_group("Report")
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
        default="ttft,tpot,itl,e2el",
        metavar="LIST",
        help="metrics to report, of: " + ",".join(METRICS),
    )
    group.add_argument("--save-result", metavar="FILE", help="also write the result as JSON to this file")
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: Namespace, terminal: Terminal) -> int:
    """Hands the checked flags to the load client; its exit status is 1 if a request failed."""
    address = args.base_url or terminal.env.get("HELIXFLOW_BASE_URL") or DEFAULT_BASE_URL
    args.base_url = normalised(address)
    args.api_key = args.api_key or terminal.env.get("HELIXFLOW_API_KEY") or None
    if args.model is None:
        args.model = _first_model(args)
    from inference_server.bench import run_serve

    return run_serve(args)


def _first_model(args: Namespace) -> str:
    from inference_server.cli.client import ServerClient

    with ServerClient(args.base_url, args.api_key) as client:
        return client.first_model()


def _typed(kind: Kind) -> Callable[[str], Any]:
    """An argparse type from a kind, so that both speak alike."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse


def _rate(text: str) -> float:
    rate: float = float("inf") if text == "inf" else _typed(kinds.number(0, 1e9, above=True))(text)
    return rate


def _goal(text: str) -> str:
    metric, _, limit = text.partition(":")
    if metric not in METRICS or not limit:
        raise ArgumentTypeError(
            f"expected METRIC:MS such as ttft:500 (of {', '.join(METRICS)}), got {text!r}"
        )
    _typed(kinds.number(0, 1e9, above=True))(limit)
    return text


def _metrics(text: str) -> str:
    for metric in text.split(","):
        if metric not in METRICS:
            raise ArgumentTypeError(f"unknown metric {metric!r}{kinds.did_you_mean(metric, METRICS)}")
    return text
