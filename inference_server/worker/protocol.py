"""Messages between the server process and a child (a model worker or a preparation job).

All are frozen msgspec structs with a tag, encoded as msgpack: never pickle. `channel.py` frames them.
"""

from __future__ import annotations

import msgspec

from inference_server.types import (
    EmbeddingRequest,
    EmbeddingVector,
    EngineSpec,
    EngineStats,
    GenerationRequest,
    MemoryReport,
    TokenDelta,
)


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Base of every message; the class name is the tag on the wire."""


# ---------------------------------------------------------------- server → child


class Prepare(Message, frozen=True, kw_only=True):
    """First message to a preparation job: fetch and convert one checkpoint into the cache."""

    source: str
    revision: str | None
    sha256: str | None
    cache_dir: str
    allow_pickle: bool = False
    trust_remote_code: bool = False


class Load(EngineSpec, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """First message to a model worker: everything it needs to become ready."""


class Submit(Message, frozen=True, kw_only=True):
    """Generate. Answered by deltas, the last of which has a finish reason, or by `RequestFailed`."""

    request: GenerationRequest


class Embed(Message, frozen=True, kw_only=True):
    """Embed. Answered by one vector per input, in any order, or by `RequestFailed`."""

    request: EmbeddingRequest


class Abort(Message, frozen=True, kw_only=True):
    """Forget these requests; no further delta is wanted. Unknown ids are ignored."""

    request_ids: tuple[str, ...]


class Sleep(Message, frozen=True, kw_only=True):
    """Give the memory of weights and KV cache back, and stay. Answered by `Asleep` or `Unchanged`."""


class Wake(Message, frozen=True, kw_only=True):
    """Take requests again. Answered by `Awake` or `Unchanged`."""


class Profile(Message, frozen=True, kw_only=True):
    """Record what is computed for `seconds`, or `max_steps` if they are over sooner, into the file `path`.

    Requests go on. Answered by `Profiled`.
    """

    path: str
    seconds: float
    max_steps: int


class Stop(Message, frozen=True, kw_only=True):
    """Leave at once; the server has already drained or given up on every request."""


# ---------------------------------------------------------------- child → server


class Progress(Message, frozen=True, kw_only=True):
    """How far a fetch, conversion or load has come. `fraction` is in [0, 1], or None if unknown."""

    stage: str  # "download" | "convert" | "load" | "check" | "warm-up" | "measure"
    fraction: float | None = None


class Prepared(Message, frozen=True, kw_only=True):
    """A preparation job is done; `folder` holds config, safetensors, tokenizer.json and chat template."""

    folder: str
    revision: str | None


class Ready(Message, frozen=True, kw_only=True):
    """The model is loaded, has passed its self-test and takes requests."""

    memory: MemoryReport
    device: str
    dtype: str
    max_model_len: int
    kv_cache_tokens: int
    vocab_size: int
    load_seconds: float
    can_sleep: bool = False
    why_not_sleep: str = ""  # in words, where it cannot


class Asleep(Message, frozen=True, kw_only=True):
    """The worker holds no weights and no KV cache any more; a `Submit` now fails."""

    memory: MemoryReport
    seconds: float


class Awake(Message, frozen=True, kw_only=True):
    """The worker takes requests again."""

    memory: MemoryReport
    seconds: float


class Unchanged(Message, frozen=True, kw_only=True):
    """A `Sleep` or `Wake` was not done, and the worker is as it was before."""

    code: str
    message: str


class Profiled(Message, frozen=True, kw_only=True):
    """The file of a `Profile` is there; with a `code`, it is not."""

    num_steps: int = 0
    seconds: float = 0.0
    code: str = ""
    message: str = ""


class StepOutput(Message, frozen=True, kw_only=True):
    """One frame per step: the new tokens of every request in it, or the vectors of an embedding model."""

    stats: EngineStats
    deltas: tuple[TokenDelta, ...] = ()
    vectors: tuple[EmbeddingVector, ...] = ()


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent about once a second by a thread of its own.

    `busy_seconds` is how long the engine loop has been inside its current step, load stage or message;
    0 while it waits for work. The server kills a worker whose value passes the hang limit.
    """

    busy_seconds: float
    stats: EngineStats | None = None


class RequestFailed(Message, frozen=True, kw_only=True):
    """One request ended with an error; the worker lives on. `param`: the field at fault, if one is."""

    request_id: str
    code: str
    message: str
    param: str | None = None


class Failed(Message, frozen=True, kw_only=True):
    """The child cannot do its job (load or preparation) and is about to exit."""

    code: str
    message: str
    retryable: bool = True


ToChild = Prepare | Load | Submit | Embed | Abort | Sleep | Wake | Profile | Stop
FromChild = (
    Progress
    | Prepared
    | Ready
    | StepOutput
    | Asleep
    | Awake
    | Unchanged
    | Profiled
    | Heartbeat
    | RequestFailed
    | Failed
)

__all__ = [
    "Abort",
    "Asleep",
    "Awake",
    "Embed",
    "EngineStats",
    "Failed",
    "FromChild",
    "Heartbeat",
    "Load",
    "MemoryReport",
    "Prepare",
    "Prepared",
    "Profile",
    "Profiled",
    "Progress",
    "Ready",
    "RequestFailed",
    "Sleep",
    "StepOutput",
    "Stop",
    "Submit",
    "ToChild",
    "Unchanged",
    "Wake",
]
