"""The largest step that an engine may take, run once on made-up requests so that its memory can be measured.

A scheduler of its own hands out the runner's blocks: the engine's own one, its prefix cache and its counters
know nothing of it. Whatever was written into the KV cache is free again afterwards.
"""

from __future__ import annotations

import msgspec

from inference_server.engine.contract import StepRunner
from inference_server.engine.scheduling import build_scheduler, num_blocks
from inference_server.engine.text_engine import TextEngine
from inference_server.errors import InternalError
from inference_server.types import BLOCK_SIZE, EngineSpec, GenerationRequest, SamplingParams

NUM_OUTPUT_TOKENS = 2  # the second comes from a step in which every sequence samples
# What needs most memory: sorted logits, and counts of the tokens seen.
_SAMPLING = SamplingParams(
    max_tokens=NUM_OUTPUT_TOKENS, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.1, ignore_eos=True
)


def rehearsal_prompts(spec: EngineSpec) -> list[int]:
    """Lengths of prompts that together fill one step with tokens, and the next with sequences that sample."""
    blocks = num_blocks(spec)
    longest = min(spec.max_model_len, blocks * BLOCK_SIZE) - NUM_OUTPUT_TOKENS
    length = min(-(-spec.max_num_batched_tokens // spec.max_num_seqs), longest)
    if length < 1:
        return []
    blocks_each = -(-(length + NUM_OUTPUT_TOKENS) // BLOCK_SIZE)
    return [length] * max(1, min(spec.max_num_seqs, blocks // (blocks_each + 1)))  # one to spare for each


def rehearse(runner: StepRunner, spec: EngineSpec, vocab_size: int) -> None:
    """Run the made-up requests to their end.

    Raises:
        InternalError: a step failed; the error is in the log.
    """
    plain = msgspec.structs.replace(spec, enable_prefix_caching=False, speculation=None, prefill_slowdown=0.0)
    engine = TextEngine(build_scheduler(plain, ()), runner, vocab_size)
    for number, length in enumerate(rehearsal_prompts(spec)):
        prompt = tuple((number + position) % vocab_size for position in range(length))
        engine.submit(GenerationRequest(request_id=str(number), prompt_token_ids=prompt, sampling=_SAMPLING))
    while engine.has_work:
        if engine.step().failures:
            raise InternalError("the largest step that the settings allow failed")
