"""What one model, its KV cache and the memory budget are, as the operator describes them: frozen values.

How these are read from models.yaml is `entries.py`; which of them a server has is `catalog.py`.
"""

from __future__ import annotations

import msgspec

from inference_server.types import Speculation


class MemorySpec(msgspec.Struct, frozen=True, kw_only=True):
    """The one budget. Per kind at most one of fraction (0..1 of the device) and bytes is set.

    With neither, the host budget is what the manager finds free.
    """

    gpu_fraction: float | None = 0.9
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    host_fraction: float | None = None


class KvCacheSpec(msgspec.Struct, frozen=True, kw_only=True):
    """KV reservation of one model. Both None: 8 × `max_model_len` tokens."""

    num_bytes: int | None = None
    num_tokens: int | None = None


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a request gets that does not set the parameter itself. None: the server's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the catalog.

    `sha256` is that of the one downloaded artifact (for a wheel: of the member file).
    Where `quantization`, `kernels`, `device`, `dtype` or `task` is "auto", the plan decides.
    `keep_alive_s` is the idle time after which the model may be unloaded; None is for ever. The two limits
    of drafts have no effect while `speculation` is "none".
    """

    name: str
    source: str
    revision: str | None = None
    sha256: str | None = None
    quantization: str = "auto"
    kernels: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    aliases: tuple[str, ...] = ()
    task: str = "auto"
    preload: bool = False
    pinned: bool = False
    max_model_len: int | None = None
    kv_cache: KvCacheSpec = KvCacheSpec()
    defaults: SamplingDefaults = SamplingDefaults()
    keep_alive_s: float | None = None
    speculation: str = "none"
    max_draft_tokens: int = Speculation().max_draft_tokens
    max_drafting_seqs: int = Speculation().max_drafting_seqs
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
