"""The load client: it measures any OpenAI-compatible server from outside, and knows nothing of ours."""

from inference_server.bench.serve import run_serve

__all__ = ["run_serve"]
