"""What each weight format costs in answers: top-1 agreement and KL divergence against float32.

`python -m benchmarks.quality` prints two tables for the demo model over the text of quality.txt: its own
weights, whose blocks the path `gguf` keeps, and the same function off its 4-bit grid (off_grid.py), which is
what the other schemes have to be judged by. The reference is transformers alone, in float32, on the same
weights. `--matrices FILE.safetensors` prints instead how far our formats are from any trained matrices.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.off_grid import write_off_grid
from inference_server.config.catalog import load_catalog
from inference_server.config.settings import default_cache_dir
from inference_server.engine.assembly import build_text_engine
from inference_server.loading.blocks import (
    BLOCK_INPUTS,
    BlockMatrix,
    quantize_4_bits,
    quantize_8_bits,
)
from inference_server.loading.preparation import prepare
from inference_server.types import EngineSpec

TEXT = Path(__file__).with_name("quality.txt")
REPOSITORY = Path(__file__).parent.parent
DEMO_MODEL = "smollm2-135m-instruct"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExecutionPath:
    """One way to compute the model."""

    kernels: str
    quantization: str
    dtype: str

    @property
    def title(self) -> str:
        """For a row of the table."""
        return f"{self.quantization} · {self.kernels} · {self.dtype}"


@dataclass(frozen=True, slots=True)
class Quality:
    """Agreement with the reference over all positions of a text."""

    top1: float  # share of positions with the same most likely token
    mean_kl: float  # nats, of the path's distribution from the reference's
    num_positions: int


OWN_WEIGHTS = (
    ExecutionPath("native", "gguf", "bfloat16"),
    ExecutionPath("native", "none", "bfloat16"),
    ExecutionPath("native", "none", "float32"),
    ExecutionPath("torch", "none", "bfloat16"),
)
OFF_GRID = (
    ExecutionPath("native", "none", "bfloat16"),
    ExecutionPath("native", "int8", "bfloat16"),
    ExecutionPath("native", "int4", "bfloat16"),
    ExecutionPath("torch", "none", "bfloat16"),
    ExecutionPath("torch", "bnb-int8", "bfloat16"),
    ExecutionPath("torch", "bnb-nf4", "bfloat16"),
)


def demo_folder() -> Path:
    """The prepared folder of the demo model, fetched and converted if need be."""
    spec = load_catalog(REPOSITORY / "models.yaml").models[DEMO_MODEL]
    return prepare(
        source=spec.source,
        revision=spec.revision,
        sha256=spec.sha256,
        cache_dir=Path(default_cache_dir()),
        allow_pickle=False,
        trust_remote_code=False,
        on_progress=lambda stage, fraction: None,
    ).folder


def text_tokens(folder: Path, at_most: int | None = None) -> list[int]:
    """The beginning of the text as the model's tokenizer splits it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids)[:at_most]


@torch.inference_mode()
def reference_logits(folder: Path, tokens: Sequence[int]) -> Floats:
    """float32 [positions, vocabulary] of the plain model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits: torch.Tensor = model.eval()(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits.numpy()


def path_logits(folder: Path, path: ExecutionPath, tokens: Sequence[int]) -> Floats:
    """The same, through the engine that serves this path."""
    num_tokens = -(-len(tokens) // 16) * 16
    spec = EngineSpec(
        model="quality",
        folder=str(folder),
        device="cpu",
        dtype=path.dtype,
        quantization=path.quantization,
        kernels=path.kernels,
        max_model_len=num_tokens,
        kv_cache_tokens=num_tokens,
        max_num_seqs=1,
        max_num_batched_tokens=num_tokens,
    )
    engine, _ = build_text_engine(spec, lambda stage, fraction: None)
    logits: Floats = engine.runner.prompt_logits(tokens)
    return logits


def compare(reference: Floats, logits: Floats) -> Quality:
    """Agreement of two sets of logits [positions, vocabulary]."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} for a reference of {reference.shape}")
    divergences = []
    for expected, found in zip(reference, logits, strict=True):  # row by row: they are large in float64
        p, q = _log_softmax(expected), _log_softmax(found)
        divergences.append(float(np.sum(np.exp(p) * (p - q))))
    top1 = float(np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))
    return Quality(top1=top1, mean_kl=float(np.mean(divergences)), num_positions=len(divergences))


def _log_softmax(row: Floats) -> npt.NDArray[np.float64]:
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - np.log(np.exp(shifted).sum())


def measure(folder: Path, paths: Sequence[ExecutionPath]) -> dict[ExecutionPath, Quality]:
    """Each path against the reference on `folder`'s weights."""
    tokens = text_tokens(folder)
    reference = reference_logits(folder, tokens)
    return {path: compare(reference, path_logits(folder, path, tokens)) for path in paths}


def relative_error(weight: Floats, quantize: Callable[[Floats], BlockMatrix]) -> tuple[float, float]:
    """(squared error, squared weights) of one matrix in blocks."""
    error = np.square(quantize(weight).dequantize() - weight, dtype=np.float64).sum()
    return float(error), float(np.square(weight, dtype=np.float64).sum())


def matrix_errors(path: Path) -> dict[str, float]:
    """Relative root-mean-square error of our formats over the matrices of a safetensors file."""
    from safetensors.torch import load_file

    weights = [tensor.float().numpy() for tensor in load_file(path).values() if _is_matrix(tensor)]
    found: dict[str, float] = {}
    for name, quantize in (("8 bits", quantize_8_bits), ("4 bits", quantize_4_bits)):
        errors, squares = zip(*(relative_error(weight, quantize) for weight in weights), strict=True)
        found[name] = (sum(errors) / sum(squares)) ** 0.5
    return found


def _is_matrix(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] % BLOCK_INPUTS == 0


def print_table(title: str, measured: dict[ExecutionPath, Quality]) -> None:
    """As Markdown."""
    num_positions = next(iter(measured.values())).num_positions
    print(f"\n{title} ({num_positions} positions)\n")
    print("| quantization · kernels · dtype | top-1 agreement | mean KL (nats) |\n|---|---|---|")
    for path, quality in measured.items():
        print(f"| {path.title} | {quality.top1:.3f} | {quality.mean_kl:.5f} |")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--matrices", type=Path, metavar="FILE", help="a safetensors file with trained weights"
    )
    arguments = parser.parse_args()
    if arguments.matrices is not None:
        for name, error in matrix_errors(arguments.matrices).items():
            print(f"{name}: relative error {error:.4f}")
        return
    folder = demo_folder()
    print_table("The demo model's own weights", measure(folder, OWN_WEIGHTS))
    with tempfile.TemporaryDirectory() as scratch:
        off_grid = write_off_grid(folder, Path(scratch) / "off-grid")
        print_table("The same function off its 4-bit grid", measure(off_grid, OFF_GRID))


if __name__ == "__main__":
    main()
