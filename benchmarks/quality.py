"""What each weight format costs in answers, and what it gives: quality, bytes and speed on a CPU.

`python -m benchmarks.quality` prints two tables for the demo model over the text of quality.txt: its own
weights, whose blocks the path `gguf` keeps, and the same function off its 4-bit grid (off_grid.py), which is
what the other schemes have to be judged by. Agreement and KL divergence are from transformers alone, in
float32, on the same weights; speeds are of decode steps in the engine, without a server.
`--matrices FILE.safetensors` prints instead how far our formats are from any trained matrices.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from inference_server.engine.text_engine import TextEngine
from inference_server.loading.blocks import (
    BLOCK_INPUTS,
    BlockMatrix,
    quantize_4_bits,
    quantize_8_bits,
)
from inference_server.loading.preparation import prepare
from inference_server.loading.quiet import quiet_libraries
from inference_server.types import EngineSpec, GenerationRequest, SamplingParams

TEXT = Path(__file__).with_name("quality.txt")
REPOSITORY = Path(__file__).parent.parent
DEMO_MODEL = "smollm2-135m-instruct"
STREAMS = (1, 16)
SPEED_PROMPT, SPEED_STEPS = 100, 40  # tokens of each stream's prompt, and steps
SPEED_LIMIT_S = 10.0  # some paths are slow on a CPU
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
class Cost:
    """What a path takes: bytes of weights, and output tokens per second by number of streams."""

    weights_bytes: int
    tokens_per_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Quality:
    """Agreement with the reference over all positions of a text, and how well the text is foretold."""

    top1: float  # share of positions with the same most likely token
    mean_kl: float  # nats, of the path's distribution from the reference's
    perplexity: float
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


def build_path(folder: Path, path: ExecutionPath, num_tokens: int) -> tuple[TextEngine, int]:
    """The engine that serves a path, for texts of `num_tokens` in one step, and the bytes of its weights."""
    max_model_len = -(-num_tokens // 16) * 16
    spec = EngineSpec(
        model="quality",
        folder=str(folder),
        device="cpu",
        dtype=path.dtype,
        quantization=path.quantization,
        kernels=path.kernels,
        max_model_len=max_model_len,
        kv_cache_tokens=max(max_model_len, max(STREAMS) * (SPEED_PROMPT + SPEED_STEPS + 32)),
        max_num_seqs=max(STREAMS),
        max_num_batched_tokens=max_model_len,
    )
    engine, facts = build_text_engine(spec, lambda stage, fraction: None)
    return engine, facts.memory.weights_bytes


def path_logits(folder: Path, path: ExecutionPath, tokens: Sequence[int]) -> Floats:
    """As `reference_logits`, through the engine that serves this path."""
    engine, _ = build_path(folder, path, len(tokens))
    logits: Floats = engine.runner.prompt_logits(tokens)  # type: ignore[attr-defined]
    return logits


def decode_rate(engine: TextEngine, num_streams: int) -> float:
    """Output tokens per second of greedy decode steps after a prompt of `SPEED_PROMPT` tokens each."""
    sampling = SamplingParams(max_tokens=SPEED_STEPS + 8, temperature=0.0, ignore_eos=True)
    for number in range(num_streams):
        prompt = tuple(range(100 + 7 * number, 100 + 7 * number + SPEED_PROMPT))
        engine.submit(GenerationRequest(request_id=str(number), prompt_token_ids=prompt, sampling=sampling))
    begun: set[str] = set()
    while len(begun) < num_streams:
        begun |= {delta.request_id for delta in engine.step().deltas}
    num_tokens, started_s = 0, time.perf_counter()
    for _ in range(SPEED_STEPS):
        num_tokens += sum(len(delta.token_ids) for delta in engine.step().deltas)
        if time.perf_counter() - started_s > SPEED_LIMIT_S:
            break
    rate = num_tokens / (time.perf_counter() - started_s)
    for number in range(num_streams):
        engine.abort(str(number))
    return rate


def compare(reference: Floats, logits: Floats, tokens: Sequence[int]) -> Quality:
    """Agreement of two sets of logits [positions, vocabulary] over a text."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} for a reference of {reference.shape}")
    divergences, surprises = [], []
    following = [*tokens[1:], None]
    for expected, found, token in zip(reference, logits, following, strict=True):  # row by row: float64
        p, q = _log_softmax(expected), _log_softmax(found)
        divergences.append(float(np.sum(np.exp(p) * (p - q))))
        if token is not None:
            surprises.append(-float(q[token]))
    top1 = float(np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))
    return Quality(
        top1=top1,
        mean_kl=float(np.mean(divergences)),
        perplexity=float(np.exp(np.mean(surprises))),
        num_positions=len(divergences),
    )


def _log_softmax(row: Floats) -> npt.NDArray[np.float64]:
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - np.log(np.exp(shifted).sum())


def measure(folder: Path, paths: Sequence[ExecutionPath]) -> dict[ExecutionPath, tuple[Quality, Cost]]:
    """Each path against the reference on `folder`'s weights, and what it takes."""
    tokens = text_tokens(folder)
    reference = reference_logits(folder, tokens)
    measured: dict[ExecutionPath, tuple[Quality, Cost]] = {}
    for path in paths:
        engine, weights_bytes = build_path(folder, path, len(tokens))
        logits: Floats = engine.runner.prompt_logits(tokens)  # type: ignore[attr-defined]
        rates = {streams: decode_rate(engine, streams) for streams in STREAMS}
        measured[path] = compare(reference, logits, tokens), Cost(weights_bytes, rates)
    return measured


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


def print_table(title: str, measured: dict[ExecutionPath, tuple[Quality, Cost]]) -> None:
    """As Markdown."""
    num_positions = next(iter(measured.values()))[0].num_positions
    print(f"\n{title} ({num_positions} positions)\n")
    speeds = " / ".join(map(str, STREAMS))
    print(
        f"| quantization · kernels · dtype | top-1 | mean KL (nats) | perplexity | MB | tok/s at {speeds} |"
    )
    print("|---|---|---|---|---|---|")
    for path, (quality, cost) in measured.items():
        rates = " / ".join(
            f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in cost.tokens_per_s.values()
        )
        print(
            f"| {path.title} | {quality.top1:.3f} | {quality.mean_kl:.5f} | {quality.perplexity:.2f} "
            f"| {cost.weights_bytes / 1e6:.0f} | {rates} |"
        )


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
    quiet_libraries()
    folder = demo_folder()
    print_table("The demo model's own weights", measure(folder, OWN_WEIGHTS))
    with tempfile.TemporaryDirectory() as scratch:
        off_grid = write_off_grid(folder, Path(scratch) / "off-grid")
        print_table("The same function off its 4-bit grid", measure(off_grid, OFF_GRID))


if __name__ == "__main__":
    main()
