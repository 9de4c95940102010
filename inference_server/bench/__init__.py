"""The load client: it measures any OpenAI-compatible server from outside, and knows nothing of ours but how
to start it."""

from inference_server.bench.serve import run_serve
from inference_server.bench.startup import run_startup
from inference_server.bench.swap import run_swap
from inference_server.bench.throughput import run_throughput

__all__ = ["run_serve", "run_startup", "run_swap", "run_throughput"]
