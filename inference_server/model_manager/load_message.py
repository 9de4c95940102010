"""The message that loads a model, put together from its entry, the settings and what the plan has decided."""

from __future__ import annotations

from pathlib import Path

from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.types import Speculation
from inference_server.worker.protocol import Load


def load_message(
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    *,
    device: str,
    dtype: str,
    quantization: str,
    max_model_len: int,
    kv_cache_tokens: int,
    kernels: str = "torch",
    scripted: bool = False,
    unpacks: bool = False,
) -> Load:
    """The message; lengths are in tokens."""
    return Load(
        model=spec.name,
        folder=str(folder),
        device=device,
        dtype=dtype,
        quantization=quantization,
        kernels=kernels,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        num_threads=settings.num_threads,
        scripted=scripted,
        unpacks=unpacks,
        trust_remote_code=spec.trust_remote_code,
        enable_prefix_caching=settings.enable_prefix_caching,
        prefill_slowdown=settings.prefill_slowdown,
        speculation=speculation(spec),
        cache_dir=settings.cache_dir,
        host_memory_limit=settings.worker_memory_limit or 0,
    )


def speculation(spec: ModelSpec) -> Speculation | None:
    """The drafts that the entry asks for, or None."""
    if spec.speculation == "none":
        return None
    return Speculation(max_draft_tokens=spec.max_draft_tokens, max_drafting_seqs=spec.max_drafting_seqs)


def max_sampled_rows(spec: ModelSpec, settings: Settings) -> int:
    """Rows of logits in one step: one per sequence, or one per draft and one more."""
    found = speculation(spec)
    num_drafting = 0 if found is None else min(found.max_drafting_seqs, settings.max_num_seqs)
    return max(settings.max_num_seqs, num_drafting * (1 + spec.max_draft_tokens))
