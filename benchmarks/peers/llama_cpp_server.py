"""Runs in the peer's own environment: llama.cpp's server until it is ended.

usage: llama_cpp_server.py MODEL.gguf PORT SLOTS CONTEXT_TOKENS THREADS
"""

from __future__ import annotations

import sys
import threading

import xllamacpp


def main(model: str, port: str, slots: str, context: str, threads: str) -> None:
    """Serve; a signal ends it."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = int(port)
    params.n_ctx = int(context)
    params.n_parallel = int(slots)
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.cont_batching = True
    server = xllamacpp.Server(params)  # serves for as long as it lives
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
