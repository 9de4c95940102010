"""Frozen values that cross packages and processes. No behaviour beyond what follows from the fields."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

BLOCK_SIZE = 16  # tokens per KV block: engines divide their cache into these, plans reserve whole ones


class FinishReason(enum.StrEnum):
    """Why a request ended, in OpenAI's words; `ABORT` never reaches a client."""

    STOP = "stop"  # end-of-sequence token, stop token id or stop string
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # the client left, or the server gave up on it


class GrammarSpec(msgspec.Struct, frozen=True):
    """What an answer must look like. `kind`: json_schema, regex, choice (a JSON list), grammar (Lark, GBNF).

    `param` is the request field that it came from, for errors.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
    param: str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. Validated at the API boundary; ranges are OpenAI's and vLLM's.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `seed` None means that the
    worker draws one. Penalties follow vLLM: presence and frequency count output tokens only, repetition
    counts prompt and output. `logit_bias` pairs (token id, bias) are added after the penalties; with
    `allowed_token_ids` no other token is chosen (empty: all are allowed). `logprobs` None asks for no
    log-probabilities of output tokens, else for those of the chosen token and of so many likeliest ones;
    `prompt_logprobs` is the same for the prompt's tokens. With `grammar` the answer is a text of it, and ends
    where that may end.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are chosen from other logits than the model's own, apart from `min_tokens`."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
            or bool(self.logit_bias)
            or bool(self.allowed_token_ids)
        )

    @property
    def is_plain(self) -> bool:
        """Whether each token is simply the one with the largest logit, and nothing else is asked for."""
        return (
            self.temperature <= 0
            and self.min_tokens == 0
            and self.logprobs is None
            and self.grammar is None
            and not self.changes_logits
        )


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate, as the server hands it to a worker.

    `cache_salt` separates tenants in the prefix cache. Lower `priority` values run first (vLLM's order),
    among those of one `tenant`; tenants share a model fairly.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""


class TokenScore(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How likely the model found one token where it stands: natural logarithms of its raw distribution.

    `rank` 1 is the likeliest. `top` are the likeliest tokens (id, log-probability), likeliest first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one request from one step. `finish_reason` is set on the last delta only.

    `num_cached_tokens` (prompt tokens served from the prefix cache) is set on the first delta. With
    `SamplingParams.logprobs`, `scores` has an entry per token. With `prompt_logprobs`, the scores of the
    prompt's tokens from the second on come in `prompt_scores`, in order, over one or more deltas, of which
    all but the last have no tokens.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Inputs to embed, each into a vector of its own.

    `dimensions` cuts each vector to its first so many numbers and makes them unit length again; None: all.
    """

    request_id: str
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int | None = None


class EmbeddingVector(msgspec.Struct, frozen=True, kw_only=True):
    """The embedding of input `index` of a request: little-endian float32 numbers."""

    request_id: str
    index: int
    values: bytes


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one finished request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Speculation(msgspec.Struct, frozen=True, kw_only=True):
    """Drafts by prompt lookup (see `scheduling/speculation.py`); the output is the same without them.

    At most `max_draft_tokens` per sequence and step, and none while more than `max_drafting_seqs` run: each
    draft costs a token's computation, which is nearly free only in small batches.
    """

    max_draft_tokens: int = 8
    max_drafting_seqs: int = 4


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that an engine needs to be built in a worker.

    `device` is "cpu" or "cuda:N"; `dtype` float32, bfloat16 or float16; `kernels` torch or native (our CPU
    kernels, `execution/native/`). `quantization` is none, or with torch bnb-nf4 or bnb-int8, or with native
    int8, int4 or gguf (the blocks of a converted GGUF file), or the scheme in which the checkpoint comes
    quantized; with `unpacks` such weights are turned into plain ones of `dtype`. `kv_cache_tokens` is the
    number of token positions to reserve KV memory for. `num_threads` 0: as many as there are cores.
    `scripted` models hold no weights (see `engine/scripted.py`).
    `task` "embed" builds an engine without KV cache (`engine/embedding_engine.py`), whose steps compute at
    most `max_num_batched_tokens` padded tokens of at most `max_num_seqs` inputs.
    `prefill_slowdown` 0 lets long prompts take whole steps (see `scheduling/pacing.py`). With
    `measures_overhead` the worker runs its largest step once, before it is ready, and reports what that took.
    What was packed for the CPU kernels is kept in `cache_dir` ("": nowhere). `host_memory_limit` is how many
    bytes of main memory the worker may take beyond those it starts with; 0: no limit.
    """

    model: str
    folder: str
    device: str
    dtype: str
    quantization: str
    max_model_len: int
    kv_cache_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    task: str = "generate"
    num_threads: int = 0
    scripted: bool = False
    trust_remote_code: bool = False
    enable_prefix_caching: bool = True
    kernels: str = "torch"
    prefill_slowdown: float = 0.0
    speculation: Speculation | None = None
    measures_overhead: bool = False
    unpacks: bool = False
    cache_dir: str = ""
    host_memory_limit: int = 0


class MeasuredOverhead(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a worker was seen to need beside its weights and KV cache.

    `context_bytes` is what it holds on its device at rest (on a CPU: its private memory), None where that
    could not be told; `workspace_bytes` what the largest step needs there on top; `host_bytes` the private
    host memory of a worker on a GPU, 0 on a CPU.
    """

    context_bytes: int | None
    workspace_bytes: int
    host_bytes: int = 0


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes that a loaded worker holds on its device, by kind, and its resident set on the host.

    `overhead` is there if the load message asked for it and it could be measured.
    """

    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    rss_bytes: int
    overhead: MeasuredOverhead | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State of an engine after a step; the counters are totals since the worker started."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0..1, share of blocks that sequences hold
    num_preemptions: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_draft_tokens: int = 0  # tokens guessed and verified
    num_accepted_tokens: int = 0  # guesses that were right
    step_num_tokens: int = 0  # tokens in the last step's batch
    step_num_seqs: int = 0  # sequences in the last step's batch
    step_seconds: float = 0.0
