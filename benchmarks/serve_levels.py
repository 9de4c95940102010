"""Output throughput at several numbers of streams, against a server of its own. `make bench` runs it.

Prompts of about 150 tokens, 64 tokens out, end-of-sequence ignored, closed loop. Prints one row per level
and the ratio of each level's throughput to that of one stream.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
HELIXFLOW = [sys.executable, "-m", "inference_server.cli.main"]
START_TIMEOUT_S = 600


def main() -> int:
    """Measure, print, and end the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(REPOSITORY / "models.yaml"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--requests-per-stream", type=int, default=4)
    arguments = parser.parse_args()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [*HELIXFLOW, "serve", "--config", arguments.config, "--port", str(port)], cwd=REPOSITORY
    )
    try:
        wait_until_ready(url, server)
        measure(url, arguments.model, 2, 2)  # warm up
        results = {
            level: measure(url, arguments.model, level, max(4, level * arguments.requests_per_stream))
            for level in arguments.levels
        }
    finally:
        server.terminate()
        server.wait(timeout=60)
    print_table(results)
    return 1 if any(result["failed"] for result in results.values()) else 0


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the preloaded model is in memory."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the server was not ready in time")


def measure(url: str, model: str, concurrency: int, num_prompts: int) -> dict[str, Any]:
    """One closed-loop level."""
    command = [*HELIXFLOW, "bench", "serve", "--base-url", url, "--model", model, "--json", "--ignore-eos"]
    command += ["--max-concurrency", str(concurrency), "--num-prompts", str(num_prompts)]
    command += ["--random-input-len", "150", "--output-len", "64"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def print_table(results: dict[int, dict[str, Any]]) -> None:
    """A Markdown table."""
    base = next(iter(results.values()))["output_throughput"]
    print("| streams | output tok/s | × one stream | TTFT p50 ms | ms per token p50 | failed |")
    print("|---|---|---|---|---|---|")
    for level, result in results.items():
        print(
            f"| {level} | {result['output_throughput']:.1f} | {result['output_throughput'] / base:.2f} "
            f"| {result['p50_ttft_ms']:.0f} | {result['p50_tpot_ms']:.1f} | {result['failed']} |"
        )


if __name__ == "__main__":
    sys.exit(main())
