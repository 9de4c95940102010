"""What is timed on a GPU. Every figure is the median or the best of several, in one process, side by side."""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_models import (
    as_loaded,
    bytes_read_per_token,
    make_model,
    multiplications_per_token,
    quantize_nf4,
)
from inference_server.engine.assembly import assemble
from inference_server.engine.text_engine import TextEngine
from inference_server.execution.attention.binding import INTERFACE_NAME, register
from inference_server.types import EngineSpec, GenerationRequest, SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: as published, or just enough to see that it runs."""

    shape: str
    streams: int = 64
    prompt: int = 128
    output: int = 128
    prefill: tuple[int, int] = (4, 2048)  # prompts, tokens of each
    copy_bytes: int = 1 << 30
    gemm: int = 8192


SIZES = {"full": Sizes("8b"), "dry": Sizes("tiny", 4, 16, 8, (2, 64), 1 << 20, 128)}


def best_seconds(device: torch.device, compute: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of one call, best of `repeats`, the device's queue empty before and after."""
    compute()
    best = float("inf")
    for _ in range(repeats):
        wait(device)
        started_s = time.perf_counter()
        compute()
        wait(device)
        best = min(best, time.perf_counter() - started_s)
    return best


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.unfreeze()  # capturing graphs froze what was alive, models included
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_bandwidth(device: torch.device, sizes: Sizes) -> float:
    """Bytes per second that a kernel reads, or reads and writes: the better of a sum and a copy."""
    source = torch.ones(sizes.copy_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    summed = source.nbytes / best_seconds(device, source.sum)
    copied = 2 * source.nbytes / best_seconds(device, lambda: target.copy_(source))
    return max(summed, copied)


def gemm_rate(device: torch.device, sizes: Sizes) -> float:
    """bf16 operations per second of one large matrix product."""
    n = sizes.gemm
    left = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    right = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    return 2 * n**3 / best_seconds(device, lambda: left @ right)


def host_to_device(device: torch.device, sizes: Sizes) -> float:
    """Bytes per second from pinned memory."""
    source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    return source.nbytes / best_seconds(device, lambda: target.copy_(source, non_blocking=True), 3)


@dataclass
class Bench:
    """One engine over a random model, and what its model takes."""

    engine: TextEngine
    device: torch.device
    sizes: Sizes
    weight_bytes: int  # read by a decode step
    multiplications: int  # per token
    build_seconds: float
    count: int = 0

    def run(self, num_prompts: int, prompt: int, output: int) -> list[tuple[float, int]]:
        """Generate → (seconds since the start, tokens) of each step that gave any."""
        vocab_size = 500
        for _ in range(num_prompts):
            self.count += 1
            ids = tuple((self.count * 31 + 7 * n) % vocab_size for n in range(prompt))
            sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
            self.engine.submit(
                GenerationRequest(request_id=f"b{self.count}", prompt_token_ids=ids, sampling=sampling)
            )
        steps = []
        wait(self.device)
        started_s = time.perf_counter()
        while self.engine.has_work:
            outcome = self.engine.step()
            if outcome.failures:
                raise RuntimeError(outcome.failures[0].message)
            if outcome.deltas:
                num_tokens = sum(len(delta.token_ids) for delta in outcome.deltas)
                steps.append((time.perf_counter() - started_s, num_tokens))
        return steps

    def step_seconds(self) -> float:
        """Median time between the tokens of a lone stream."""
        self.run(1, self.sizes.prompt, 8)
        times = [at for at, _ in self.run(1, self.sizes.prompt, self.sizes.output)]
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times[2:]))
        return gaps[len(gaps) // 2]

    def profile(self, num_lines: int = 10) -> list[tuple[str, float]]:
        """Where a lone stream's decode steps go: (kernel, share of the device's time), largest first."""
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profiler:
            self.run(1, self.sizes.prompt, 12)
        times: dict[str, float] = {}
        for event in profiler.key_averages():
            if event.device_type != torch.autograd.DeviceType.CPU:
                times[event.key] = times.get(event.key, 0.0) + event.self_device_time_total
        total = sum(times.values())
        largest = sorted(times.items(), key=lambda entry: -entry[1])[:num_lines]
        return [(name, spent / total) for name, spent in largest if total]

    def throughput(self) -> float:
        """Output tokens per second of all streams together, prefill included; better of two."""
        sizes = self.sizes
        self.run(sizes.streams, sizes.prompt, 4)
        best = 0.0
        for _ in range(2):
            steps = self.run(sizes.streams, sizes.prompt, sizes.output)
            best = max(best, sum(tokens for _, tokens in steps) / steps[-1][0])
        return best

    def prefill_rate(self) -> float:
        """Operations per second of linear layers and attention while long prompts are read; best of three."""
        num_prompts, prompt = self.sizes.prefill
        best = min(self.run(num_prompts, prompt, 1)[-1][0] for _ in range(3))
        return num_prompts * prompt * 2 * self.multiplications / best


def make_bench(device: torch.device, sizes: Sizes, *, nf4: bool = False) -> Bench:
    """An engine as a worker builds it, over a model that no file holds."""
    register()
    dtype = torch.bfloat16
    model = make_model(sizes.shape, device, dtype, INTERFACE_NAME)
    multiplications = multiplications_per_token(model)
    if nf4:
        quantize_nf4(model, dtype)
        free(device)
    weight_bytes = bytes_read_per_token(model)
    num_prompts, prompt = sizes.prefill
    spec = EngineSpec(
        model=f"random-{sizes.shape}",
        folder="",
        device=str(device),
        dtype="bfloat16",
        quantization="bnb-nf4" if nf4 else "none",
        max_model_len=max(prompt, sizes.prompt + sizes.output) + 64,
        kv_cache_tokens=max(num_prompts * (prompt + 16), sizes.streams * (sizes.prompt + sizes.output + 32)),
        max_num_seqs=sizes.streams,
        max_num_batched_tokens=max(num_prompts * prompt, sizes.streams * sizes.prompt),
        enable_prefix_caching=False,
    )
    started_s = time.perf_counter()
    engine, _ = assemble(as_loaded(model, device, dtype), spec, lambda stage, fraction: None)
    wait(device)
    return Bench(engine, device, sizes, weight_bytes, multiplications, time.perf_counter() - started_s)


def peer_throughput(device: torch.device, sizes: Sizes) -> float:
    """Output tokens per second of transformers' own continuous batching, with graphs, overlapped or not.

    The best of two runs of each setting.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = make_model(sizes.shape, device, torch.bfloat16, "sdpa")
    on_cuda = device.type == "cuda"
    generation = GenerationConfig(
        max_new_tokens=sizes.output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    inputs = [[(n * 31 + 7 * k) % 500 + 3 for k in range(sizes.prompt)] for n in range(sizes.streams)]
    rates: list[float] = []
    problem: Exception | None = None
    for overlapped in (True, False) if on_cuda else (False,):  # its best setting is not known beforehand
        config = ContinuousBatchingConfig(
            max_memory_percent=0.5, use_cuda_graph=on_cuda, use_async_batching=overlapped
        )
        try:
            rates += [_peer_rate(model, inputs, generation, config, device) for _ in range(2)]
        except Exception as error:
            logger.warning("transformers failed with overlapped=%s", overlapped, exc_info=error)
            problem = error
    if not rates:
        raise RuntimeError(f"transformers failed with every setting, last: {problem}")
    return max(rates)


def _peer_rate(model: Any, inputs: Any, generation: Any, config: Any, device: torch.device) -> float:
    wait(device)
    started_s = time.perf_counter()
    outputs = model.generate_batch(inputs, generation_config=generation, continuous_batching_config=config)
    wait(device)
    seconds = time.perf_counter() - started_s
    num_tokens = sum(len(output.generated_tokens) for output in outputs.values())
    if num_tokens < len(inputs) * generation.max_new_tokens:
        raise RuntimeError(f"only {num_tokens} tokens came")
    return num_tokens / _span(outputs, seconds)


def _span(outputs: dict[str, Any], seconds: float) -> float:
    """From the first request's start to the last one's end, without the making of cache and graphs."""
    begun = min(output.lifespan[0] for output in outputs.values())
    ended = max(output.lifespan[1] for output in outputs.values())
    span = float(ended - begun)
    return span if begun >= 0 and 0 < span <= seconds else seconds
