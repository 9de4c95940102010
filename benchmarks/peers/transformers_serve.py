"""`transformers serve` with its continuous batching, in bfloat16.

It takes neither `ignore_eos` nor `stream_options`, so answers end where the model ends them; the load client
asks without the two and takes the token counts from the usage in the last chunk.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers.servers import Server, Started
from benchmarks.peers.workshop import Workshop

REQUIREMENTS = ("transformers[serving]==5.23.0", "torch==2.13.0", "accelerate==1.15.0")
_FLAGS = ("--continuous-batching", "--dtype", "bfloat16", "--device", "cpu", "--host", "127.0.0.1")


def _prepare(workshop: Workshop) -> Callable[[int], Started]:
    program = workshop.environment("transformers", REQUIREMENTS) / "bin" / "transformers"
    model = str(workshop.checkpoint())

    def started(port: int) -> Started:
        command = (str(program), "serve", model, *_FLAGS, "--port", str(port))
        env = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        return Started(command, f"http://127.0.0.1:{port}", model, env=env)

    return started


TRANSFORMERS = Server("transformers", "transformers serve, continuous batching", "bf16", _prepare)
