"""What must be right on a GPU before anything is timed. Each check returns a short remark, or raises."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_models import make_model
from inference_server.engine.text_engine import TextEngine
from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.kv_cache import LayerCache, LayerShape
from inference_server.types import GenerationRequest, SamplingParams
from tests.engine.reference import assert_golden, build_engine, greedy_request, reference_model
from tests.engine.tiny_models import FAMILIES, VOCAB_SIZE, save_tiny_model

MAX_TOKENS = 24


@dataclass(frozen=True)
class Outputs:
    """Tokens of each request, and what computed them."""

    tokens: dict[str, list[int]]
    runner: str
    has_graphs: bool


def check_paged_kernels(device: torch.device) -> str:
    """Triton against plain attention: head sizes, groups, dtypes."""
    from inference_server.execution.attention.cuda import check_backend, cuda_backend
    from inference_server.execution.cuda_setup import TOLERANCE

    backend = cuda_backend(device)
    worst: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape, heads in (
            (LayerShape(8, 128, 128), 32),
            (LayerShape(2, 64, 64), 14),
            (LayerShape(1, 256, 256), 4),
            (LayerShape(3, 96, 80), 9),
        ):
            difference = check_backend(
                backend, [shape], num_heads=heads, block_size=16, dtype=dtype, device=device
            )
            if not difference <= TOLERANCE[dtype]:
                raise AssertionError(f"{shape} in {dtype} is off by {difference:.3g}")
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), difference)
    return ", ".join(f"{name.removeprefix('torch.')} {value:.1e}" for name, value in worst.items())


def check_flash(device: torch.device) -> str:
    """torch's variable-length attention against our kernel, in the kinds that models ask for."""
    from inference_server.execution.attention.triton_paged import TritonAttention
    from inference_server.execution.attention.varlen import VarlenAttention, find_function
    from inference_server.execution.paged_step import Region

    function = find_function()
    if function is None:
        return "this torch has none"
    varlen, paged = VarlenAttention(function), TritonAttention(100)
    lengths = (300, 17, 260)
    starts = torch.tensor([0, 300, 317, 577], dtype=torch.int32, device=device)
    shape = LayerShape(8, 128, 128)
    width = 20
    cache = LayerCache(shape, 3 * width, 16, torch.bfloat16, device)
    table = torch.arange(3 * width, dtype=torch.int32, device=device).view(3, width)
    slots = torch.cat([torch.arange(n) + i * width * 16 for i, n in enumerate(lengths)])
    region = Region(
        0,
        577,
        300,
        starts,
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.arange(3, dtype=torch.int32, device=device),
    )
    call = AttentionCall(
        query=torch.randn(577, 32, 128, dtype=torch.bfloat16, device=device),
        key=torch.randn(577, 8, 128, dtype=torch.bfloat16, device=device),
        value=torch.randn(577, 8, 128, dtype=torch.bfloat16, device=device),
        scale=128**-0.5,
        window=None,
        softcap=None,
        sinks=None,
    )
    paged.store(call, cache, slots.to(device, torch.int32))
    trusted = []
    kinds = {
        "plain": call,
        "window": replace(call, window=100),
        "sinks": replace(call, sinks=torch.randn(32, dtype=torch.bfloat16, device=device)),
    }
    for name, kind in kinds.items():
        output = torch.empty_like(call.query)

        def ours(kind: AttentionCall = kind, output: torch.Tensor = output) -> torch.Tensor:
            paged.chunks(kind, cache, region, table, output)
            return output

        varlen.attend(kind, region, ours)
        if varlen.attend(kind, region, ours) is not None:
            trusted.append(name)
    return f"trusted for {', '.join(trusted) or 'nothing'}"


def check_golden_rule(device: torch.device) -> str:
    """Float32, every family: what the engine generates is what plain `generate` does on the CPU."""
    seen = set()
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny_model(family, Path(folder))
            found = generate(Path(folder), device)
            assert_golden(reference_model(Path(folder)), prompts(), found.tokens)
            seen.add(f"{found.runner}{' with graphs' if found.has_graphs else ''}")
    return f"{', '.join(FAMILIES)}: {', '.join(sorted(seen))}"


def check_graphs_and_overlap(device: torch.device) -> str:
    """Graphs or eager, one or two steps in flight, greedy or drawn: the same tokens."""

    with tempfile.TemporaryDirectory() as folder:
        save_tiny_model("llama", Path(folder))
        plain = generate(Path(folder), device, drawn=True)
        if not plain.has_graphs and device.type == "cuda":
            raise AssertionError("no decode step was captured")
        for change in (without_graphs, one_at_a_time):
            found = generate(Path(folder), device, drawn=True, change=change)
            if found.tokens != plain.tokens:
                raise AssertionError(f"other tokens with {change.__name__}")
    return f"{len(plain.tokens)} requests, {plain.runner}"


def check_quantized(device: torch.device) -> str:
    """bitsandbytes' layers load, are captured, and say from graphs what they say eagerly.

    In bfloat16 a padded batch may be computed by another kernel, and the weights are random, so that a near
    tie may fall either way: most outputs must be the same, not all.
    """
    remarks = []
    for scheme in ("bnb-nf4", "bnb-int8"):
        with tempfile.TemporaryDirectory() as folder:
            make_model("tiny", torch.device("cpu"), torch.float32, "eager").save_pretrained(folder)
            changes = {"quantization": scheme, "dtype": "bfloat16"}
            graphed = generate(Path(folder), device, **changes)
            eager = generate(Path(folder), device, change=without_graphs, **changes)
        count, same = len(graphed.tokens), sum(graphed.tokens[n] == eager.tokens[n] for n in graphed.tokens)
        if 2 * same < count:
            raise AssertionError(f"{scheme}: only {same} of {count} outputs are the same")
        how = "from graphs" if graphed.has_graphs else "eagerly"
        remarks.append(f"{scheme} {how}, {same} of {count} the same")
    return ", ".join(remarks)


def without_graphs(runner: Any) -> None:
    """Decode steps run eagerly."""
    runner.graphs = None


def one_at_a_time(runner: Any) -> None:
    """No step is launched before the last one's tokens are there."""
    runner.max_in_flight = 1


def prompts() -> dict[str, list[int]]:
    """Short and long ones, among them one for flash attention's sake."""
    rng = random.Random(5)
    lengths = (1, 3, 16, 17, 40, 64, 300, 5)
    return {
        f"r{n}": [rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for n, length in enumerate(lengths)
    }


def generate(
    folder: Path,
    device: torch.device,
    *,
    drawn: bool = False,
    change: Callable[[Any], None] | None = None,
    **spec: Any,
) -> Outputs:
    """All prompts through one engine. `change` alters its runner first."""
    engine: TextEngine = build_engine(
        folder, device=str(device), max_model_len=512, max_num_batched_tokens=320, **spec
    )
    runner: Any = engine._runner
    if change is not None and hasattr(runner, "graphs"):
        change(runner)
    for number, (name, prompt) in enumerate(prompts().items()):
        request = greedy_request(name, prompt, MAX_TOKENS)
        if drawn and number % 2:
            sampling = SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=1.0,
                top_p=0.9,
                top_k=40,
                repetition_penalty=1.1,
                seed=number,
                ignore_eos=True,
            )
            request = GenerationRequest(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling)
        engine.submit(request)
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        outcome = engine.step()
        if outcome.failures:
            raise AssertionError(str(outcome.failures[0]))
        for delta in outcome.deltas:
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    return Outputs(tokens, type(runner).__name__, getattr(runner, "graphs", None) is not None)
