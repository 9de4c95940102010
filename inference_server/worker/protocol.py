"""Messages between the server process and a child (a model worker or a preparation job).

All are frozen msgspec structs with a tag, encoded as msgpack: never pickle. `channel.py` frames them.
"""

from __future__ import annotations

import msgspec

from inference_server.types import GenerationRequest, TokenDelta


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Base of every message; the class name is the tag on the wire."""


# ---------------------------------------------------------------- server → child


class Prepare(Message):
    """First message to a preparation job: fetch and convert one checkpoint into the cache."""

    source: str
    revision: str | None
    sha256: str | None
    cache_dir: str
    allow_pickle: bool = False
    trust_remote_code: bool = False


class Load(Message):
    """First message to a model worker: everything it needs to become ready.

    `kv_cache_tokens` is the number of token positions to reserve KV memory for.
    """

    model: str
    folder: str
    scripted: bool = False
    device: str  # "cpu" or "cuda:N"
    dtype: str  # "float32" | "bfloat16" | "float16" | "auto"
    quantization: str  # "none" | "bnb-nf4" | "bnb-int8"
    max_model_len: int
    kv_cache_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_threads: int = 0  # 0: the library's own choice
    trust_remote_code: bool = False
    enable_prefix_caching: bool = True


class Submit(Message):
    """Generate. Answered by deltas, the last of which has a finish reason, or by `RequestFailed`."""

    request: GenerationRequest


class Abort(Message):
    """Forget these requests; no further delta is wanted. Unknown ids are ignored."""

    request_ids: tuple[str, ...]


class Stop(Message):
    """Leave at once; the server has already drained or given up on every request."""


# ---------------------------------------------------------------- child → server


class Progress(Message):
    """How far a fetch, conversion or load has come. `fraction` is in [0, 1], or None if unknown."""

    stage: str  # "download" | "convert" | "load" | "check" | "warm-up"
    fraction: float | None = None


class Prepared(Message):
    """A preparation job is done; `folder` holds config, safetensors, tokenizer.json and chat template."""

    folder: str
    revision: str | None


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a loaded worker holds on its device, by kind."""

    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    rss_bytes: int


class Ready(Message):
    """The model is loaded, has passed its self-test and takes requests."""

    memory: MemoryReport
    device: str
    dtype: str
    max_model_len: int
    kv_cache_tokens: int
    vocab_size: int
    load_seconds: float


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State of a worker's engine after a step; the counters are totals since the worker started."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float  # 0..1, blocks in use by sequences
    num_preemptions: int
    prefix_cache_queries: int  # prompt tokens looked up
    prefix_cache_hits: int  # prompt tokens found
    step_num_tokens: int = 0  # tokens in this step's batch
    step_num_seqs: int = 0  # sequences in this step's batch
    step_seconds: float = 0.0


class StepOutput(Message):
    """One frame per step: the new tokens of every request in it."""

    deltas: tuple[TokenDelta, ...]
    stats: EngineStats


class Heartbeat(Message):
    """Sent about once a second by a thread of its own.

    `busy_seconds` is how long the engine loop has been inside its current step, load stage or message;
    0 while it waits for work. The server kills a worker whose value passes the hang limit.
    """

    busy_seconds: float
    stats: EngineStats | None = None


class RequestFailed(Message):
    """One request ended with an error; the worker lives on."""

    request_id: str
    code: str
    message: str


class Failed(Message):
    """The child cannot do its job (load or preparation) and is about to exit."""

    code: str
    message: str
    retryable: bool = True


ToChild = Prepare | Load | Submit | Abort | Stop
FromChild = Progress | Prepared | Ready | StepOutput | Heartbeat | RequestFailed | Failed
