"""The command: HelixFlow and its peers under the same load, one after another, in one Markdown table.

Each peer is installed into a virtual environment of its own, once. Every server runs alone, on loopback, with
as many threads as there are processors. Prompts are the same for all and new for each round. Figures are
medians over rounds. Exit status 1: a server did not run, or a request failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.helixflow import ROWS, helixflow_servers
from benchmarks.peers.llama_cpp import LLAMA_CPP
from benchmarks.peers.machine import describe
from benchmarks.peers.rounds import Plan, Run, run_rounds
from benchmarks.peers.servers import Server, Started
from benchmarks.peers.table import markdown, ratios, rows_of
from benchmarks.peers.transformers_serve import TRANSFORMERS
from benchmarks.peers.vllm_cpu import VLLM
from benchmarks.peers.workshop import REPOSITORY, Workshop

PEERS = (LLAMA_CPP, TRANSFORMERS, VLLM)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, measure, print; keeps what it has after every run."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended, too
    servers = _chosen(arguments)
    plan = Plan(
        levels=tuple(arguments.levels),
        requests_per_stream=arguments.requests_per_stream,
        min_requests=arguments.min_requests,
        num_warmup=arguments.warmup_requests,
    )
    workshop = Workshop(arguments.cache_dir, REPOSITORY / "models.yaml", num_slots=max(plan.levels), say=_say)
    starts, unprepared = _prepared(servers, workshop)
    if arguments.prepare_only:
        return 1 if unprepared else 0
    runs = list(unprepared)
    for run in run_rounds(starts, plan, arguments.rounds, _say):
        runs.append(run)
        if arguments.save_result:
            _save(arguments.save_result, servers, runs, plan)
    print(_table(servers, runs, plan), end="")
    return 0 if all(run.is_good for run in runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="rounds over all servers; default: 1")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 32], help="numbers of streams")
    parser.add_argument("--requests-per-stream", type=int, default=2)
    parser.add_argument("--min-requests", type=int, default=8, help="of a level; default: 8")
    parser.add_argument("--warmup-requests", type=int, default=4, help="before the levels; default: 4")
    parser.add_argument("--with-vllm", action="store_true", help="measure vLLM too, which starts slowly")
    parser.add_argument("--servers", nargs="+", metavar="KEY", help="only these; default: all but vllm")
    parser.add_argument("--rows", type=Path, default=ROWS, help="HelixFlow's configurations")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "helixflow-bench"
    parser.add_argument("--cache-dir", type=Path, default=cache, help=f"of peers; default: {cache}")
    parser.add_argument("--prepare-only", action="store_true", help="install the peers; measure nothing")
    parser.add_argument(
        "--save-result", type=Path, metavar="FILE.json", help="all runs; the table goes beside it"
    )
    return parser


def _chosen(arguments: argparse.Namespace) -> list[Server]:
    known = {server.key: server for server in (*helixflow_servers(arguments.rows), *PEERS)}
    if not arguments.servers:
        return [server for server in known.values() if server is not VLLM or arguments.with_vllm]
    for key in arguments.servers:
        if key not in known:
            raise SystemExit(f"there is no server {key}; known are: {', '.join(known)}")
    return [known[key] for key in dict.fromkeys(arguments.servers)]


def _prepared(
    servers: Sequence[Server], workshop: Workshop
) -> tuple[list[tuple[Server, Callable[[int], Started]]], list[Run]]:
    """Those that can be started, and a failed run for each that cannot."""
    starts, failed = [], []
    for server in servers:
        try:
            starts.append((server, server.prepare(workshop)))
        except (subprocess.CalledProcessError, OSError) as error:
            _say(f"{server.name} cannot be prepared: {error}")
            failed.append(Run(key=server.key, round=0, error=str(error)))
    return starts, failed


def _table(servers: Sequence[Server], runs: Sequence[Run], plan: Plan) -> str:
    return markdown(rows_of(servers, runs, plan.levels), plan.levels)


def _save(path: Path, servers: Sequence[Server], runs: Sequence[Run], plan: Plan) -> None:
    rows = rows_of(servers, runs, plan.levels)
    peers = [row for row in rows if not row.server.is_ours]
    body = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "plan": asdict(plan),
        "ratios_to_best_peer": {
            row.server.key: ratios(row, peers, plan.levels) for row in rows if row.server.is_ours
        },
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(rows, plan.levels), encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
