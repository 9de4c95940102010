"""One command for a GPU machine: is everything right, and how fast is it?

`python -m benchmarks.gpu_suite` needs no network; weights are random. It checks correctness on tiny models,
then times an 8B-shaped one, prints a Markdown table and writes JSON. A part that fails is reported and the
rest goes on; a part that would begin too late is left out. `--dry-run` does the same on a tiny model, on a
CPU if need be: it shows that the suite runs, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import gpu_checks as checks
from benchmarks import gpu_timings as timings

DEADLINE_S = 520.0  # nothing begins later
GIGA = 1e9


@dataclass(frozen=True)
class Row:
    """One line of the table. `passed` is None where there is no goal."""

    name: str
    goal: str
    measured: str
    passed: bool | None


@dataclass
class Report:
    """What was found so far. `figures` are plain numbers by name, for the JSON file."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)  # kernels' shares of a decode step

    def add(self, name: str, goal: str, measured: str, passed: bool | None = None) -> None:
        """Note a line, and show it at once."""
        self.rows.append(Row(name, goal, measured, passed))
        print(f"{name}: {measured}", flush=True)


class Suite:
    """Runs its parts in order, each on its own."""

    def __init__(self, device: torch.device, sizes: timings.Sizes, *, judges: bool) -> None:
        """`judges`: whether figures are held against the goals."""
        self.device, self.sizes, self.judges = device, sizes, judges
        self.report = Report()
        self._started_s = time.perf_counter()

    def part(self, name: str, compute: Callable[[], None]) -> None:
        """Run one part; its failure is a line of the table."""
        begun_s = time.perf_counter()
        if begun_s - self._started_s > DEADLINE_S:
            self.report.add(name, "", "left out: no time", None)
            return
        try:
            compute()
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0][:160]
            self.report.add(name, "", f"failed: {type(error).__name__}: {first_line}", False)
        finally:
            timings.free(self.device)
            self.report.seconds[name] = round(time.perf_counter() - begun_s, 1)

    def check(self, name: str, compute: Callable[[torch.device], str], *, needs_gpu: bool = False) -> None:
        """A part that is right or raises."""
        if needs_gpu and self.device.type != "cuda":
            self.report.add(name, "right", "left out: no GPU")
            return
        self.part(name, lambda: self.report.add(name, "right", compute(self.device), True))

    def goal(self, name: str, goal: str, measured: str, passed: bool | None) -> None:
        """A figure that there is a goal for."""
        self.report.add(name, goal, measured, passed if self.judges else None)

    def machine(self) -> None:
        """What this machine can do."""
        figures = self.report.figures
        figures["bandwidth"] = timings.memory_bandwidth(self.device, self.sizes)
        figures["gemm"] = timings.gemm_rate(self.device, self.sizes)
        figures["host_to_device"] = timings.host_to_device(self.device, self.sizes)
        self.report.add("memory bandwidth", "–", f"{figures['bandwidth'] / GIGA:.0f} GB/s")
        self.report.add("bf16 matrix product", "–", f"{figures['gemm'] / 1e12:.1f} TFLOP/s")
        self.report.add("host to device, pinned", "–", f"{figures['host_to_device'] / GIGA:.1f} GB/s")

    def bf16(self) -> None:
        """Decode, throughput and prefill of the unquantized model."""
        figures, bench = self.report.figures, timings.make_bench(self.device, self.sizes)
        self.report.add("ready after loading (check, warm-up, graphs)", "–", f"{bench.build_seconds:.1f} s")
        figures["ready_seconds"] = bench.build_seconds
        figures["decode_ms"] = 1000 * bench.step_seconds()
        self._against_roofline(bench.weight_bytes)
        figures["throughput"] = bench.throughput()
        self.report.add(f"output of {self.sizes.streams} streams", "–", f"{figures['throughput']:.0f} tok/s")
        figures["prefill"] = bench.prefill_rate()
        self._against_gemm()
        if self.device.type == "cuda":
            self.part("profile", lambda: self._profile(bench))

    def _profile(self, bench: timings.Bench) -> None:
        for name, share in bench.profile():
            self.report.profile[name] = round(share, 4)
            print(f"  {share:6.1%}  {name[:100]}", flush=True)

    def _against_roofline(self, weight_bytes: int) -> None:
        figures = self.report.figures
        figures["weight_bytes"] = weight_bytes
        measured = f"{figures['decode_ms']:.2f} ms per token"
        if "bandwidth" not in figures:
            self.goal("decode, one stream", "≥ 70 % of the roofline", measured, None)
            return
        floor_ms = 1000 * weight_bytes / figures["bandwidth"]
        share = figures["decode_share"] = floor_ms / figures["decode_ms"]
        text = f"{measured}, floor {floor_ms:.2f}: {share:.0%}"
        self.goal("decode, one stream", "≥ 70 % of the roofline", text, share >= 0.7)

    def _against_gemm(self) -> None:
        figures = self.report.figures
        text = f"{figures['prefill'] / 1e12:.1f} TFLOP/s"
        share = figures["prefill"] / figures["gemm"] if "gemm" in figures else None
        if share is not None:
            figures["prefill_share"] = share
            text += f": {share:.0%}"
        passed = None if share is None else share >= 0.5
        self.goal("prefill", "≥ 50 % of the matrix product's rate", text, passed)

    def peer(self) -> None:
        """transformers' continuous batching on the same work."""
        figures = self.report.figures
        figures["peer_throughput"] = timings.peer_throughput(self.device, self.sizes)
        text = f"{figures['peer_throughput']:.0f} tok/s"
        passed = None
        if "throughput" in figures:
            ratio = figures["throughput_ratio"] = figures["throughput"] / figures["peer_throughput"]
            text += f": we are {ratio:.1f} times as fast"
            passed = ratio >= 2.0
        self.goal("transformers' continuous batching", "≤ half of ours", text, passed)

    def nf4(self) -> None:
        """A lone stream on 4-bit weights."""
        figures = self.report.figures
        bench = timings.make_bench(self.device, self.sizes, nf4=True)
        figures["nf4_decode_ms"] = 1000 * bench.step_seconds()
        text = f"{figures['nf4_decode_ms']:.2f} ms per token"
        passed = figures["nf4_decode_ms"] < figures["decode_ms"] if "decode_ms" in figures else None
        self.goal("nf4 decode, one stream", "faster than bf16", text, passed)

    def run(self, only: set[str]) -> None:
        """Every part, or those named."""
        parts: dict[str, Callable[[], None]] = {
            "kernels": lambda: self.check("paged kernels", checks.check_paged_kernels, needs_gpu=True),
            "flash": lambda: self.check("flash attention", checks.check_flash, needs_gpu=True),
            "golden": lambda: self.check("golden rule", checks.check_golden_rule),
            "graphs": lambda: self.check("graphs and overlap", checks.check_graphs_and_overlap),
            "quantized": lambda: self.check("bitsandbytes layers", checks.check_quantized),
            "machine": lambda: self.part("machine", self.machine),
            "bf16": lambda: self.part("bf16", self.bf16),
            "peer": lambda: self.part("peer", self.peer),
            "nf4": lambda: self.part("nf4", self.nf4),
        }
        for name, part in parts.items():
            if not only or name in only:
                part()


def describe(device: torch.device) -> dict[str, str]:
    """The machine and the versions."""
    on_cuda = device.type == "cuda"
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.processor() or "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": triton_version,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def table(report: Report) -> str:
    """Markdown."""
    marks = {True: "yes", False: "**no**", None: ""}
    lines = ["| what | goal | measured | met |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.goal} | {row.measured} | {marks[row.passed]} |" for row in report.rows]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if anything failed or missed its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model and small counts")
    parser.add_argument("--only", nargs="+", default=[], help="names of parts: kernels golden bf16 …")
    parser.add_argument("--json", type=Path, default=None, help="where to write everything")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type != "cuda" and not arguments.dry_run:
        parser.error("there is no GPU here; --dry-run works without one")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    suite = Suite(device, timings.SIZES["dry" if arguments.dry_run else "full"], judges=not arguments.dry_run)
    suite.run(set(arguments.only))
    facts = describe(device)
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    print(table(suite.report))
    if arguments.json is not None:
        result: dict[str, Any] = {"machine": facts} | asdict(suite.report)
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 1 if any(row.passed is False for row in suite.report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
