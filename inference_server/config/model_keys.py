"""The keys of models.yaml's sections `models`, `defaults` and `memory`: tables, no reading of files.

The reader (`entries.py`) and the JSON Schema (`schema.py`) are driven by them.
"""

from __future__ import annotations

from inference_server.config import kinds
from inference_server.config.keys import Key, table
from inference_server.config.spec import KvCacheSpec
from inference_server.config.units import parse_bytes, parse_duration, parse_share

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
NAME_EXPECTED = "a name of letters, digits and ._:/@+- (128 at most)"
MAX_TOKENS = 2**31 - 1

QUANTIZATION = kinds.choice(
    "auto",
    "none",
    "int8",
    "int4",
    "gguf",
    "bnb-nf4",
    "bnb-int8",
    "gptq",
    "awq",
    "fp8",
    "compressed-tensors",
    "mxfp4",
)
KERNELS = kinds.choice("auto", "native", "torch")
DEVICE = kinds.text("DEVICE", r"auto|cpu|cuda|cuda:[0-9]{1,2}", "auto, cpu, cuda or cuda:N")
DTYPE = kinds.choice("auto", "float32", "bfloat16", "float16")
MODEL_LEN = kinds.integer(1, MAX_TOKENS)


def _kv_cache(value: object) -> KvCacheSpec:
    if isinstance(value, dict):
        raise ValueError("expected a size such as 1GiB, or `tokens: N`")
    found = parse_bytes(value)  # type: ignore[arg-type]  # it refuses what it cannot read
    if found == 0:
        raise ValueError("expected a size above 0")
    return KvCacheSpec(num_bytes=found)


def _budget(value: object) -> tuple[float | None, int | None]:
    """(fraction, bytes), one of which is None. A number up to 1 and a percentage are fractions."""
    is_share = isinstance(value, str) and value.strip().endswith("%")
    is_share = is_share or (isinstance(value, int | float) and not isinstance(value, bool) and value <= 1)
    if is_share:
        return parse_share(value), None  # type: ignore[arg-type]
    found = parse_bytes(value)  # type: ignore[arg-type]
    if found == 0:
        raise ValueError("expected a size above 0, or a share such as 90%")
    return None, found


_BUDGET = kinds.Kind(
    _budget, {"type": ["string", "number"], "exclusiveMinimum": 0, "examples": ["90%", "40GiB"]}, "SIZE|SHARE"
)
_KEEP_ALIVE = kinds.Kind(
    parse_duration,  # type: ignore[arg-type]
    {"type": ["string", "number"], "minimum": -1, "examples": ["10m", -1]},
    "DURATION",
)
_KV_CACHE = kinds.Kind(_kv_cache, {"type": ["string", "integer"], "minimum": 1, "examples": ["1GiB"]}, "SIZE")
KV_CACHE_KEYS = table(
    Key("bytes", kinds.size(), "KV memory to reserve, as a size"),
    Key("tokens", kinds.integer(1, MAX_TOKENS), "KV memory to reserve, as a number of token positions"),
)

SAMPLING_KEYS = table(
    Key("temperature", kinds.number(0, 2), "0 always takes the most likely token"),
    Key(
        "top_p",
        kinds.number(0, 1, above=True),
        "sample among the most likely tokens of this total probability",
    ),
    Key("top_k", kinds.integer(0, MAX_TOKENS), "sample among this many most likely tokens; 0: all"),
    Key("min_p", kinds.number(0, 1), "drop tokens below this share of the most likely one's probability"),
    Key("repetition_penalty", kinds.number(0.01, 2), "above 1 discourages any token seen before"),
    Key("presence_penalty", kinds.number(-2, 2), "above 0 discourages tokens already generated"),
    Key(
        "frequency_penalty",
        kinds.number(-2, 2),
        "above 0 discourages tokens by how often they were generated",
    ),
    Key("max_tokens", kinds.integer(1, MAX_TOKENS), "answer length where the request sets none"),
)
SHARED_KEYS = table(
    Key(
        "quantization",
        QUANTIZATION,
        "how weights are held; auto: as the checkpoint has them, or smaller if that does not fit; "
        "gptq to mxfp4: only for checkpoints that come so",
    ),
    Key("kernels", KERNELS, "what computes on a CPU; auto: our native kernels where they can, else torch"),
    Key("device", DEVICE, "auto: the GPU if the model fits there, else the CPU"),
    Key(
        "dtype", DTYPE, "number format of weights and computation; auto: as the checkpoint and device suggest"
    ),
    Key("max_model_len", MODEL_LEN, "longest prompt plus answer, in tokens; default: what the model allows"),
    Key("kv_cache", _KV_CACHE, "KV memory to reserve; default: 8 x max_model_len tokens"),
    Key("keep_alive", _KEEP_ALIVE, "idle time after which the model may be unloaded; -1: never"),
    Key(
        "speculation",
        kinds.choice("none", "prompt-lookup"),
        "guess tokens from what was said before, and verify several in one step; the output is the same",
    ),
    Key("max_draft_tokens", kinds.integer(1, 64), "tokens guessed at once per sequence"),
    Key("max_drafting_seqs", kinds.integer(1, 65536), "no guesses while more sequences run"),
)
MODEL_KEYS = table(
    Key(
        "source",
        kinds.text("SOURCE"),
        "hub id (org/name), folder (./dir), GGUF file, wheel (pypi:PROJECT==VERSION/path) or scripted",
    ),
    Key(
        "revision",
        kinds.text("REV", r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", "a commit, tag or branch"),
        "hub revision",
    ),
    Key(
        "sha256",
        kinds.text("HEX", r"[0-9a-f]{64}", "64 lower-case hex digits"),
        "SHA-256 of the downloaded file",
    ),
    *SHARED_KEYS.values(),
    Key(
        "aliases", kinds.names(NAME_PATTERN, NAME_EXPECTED), "other names under which clients may ask for it"
    ),
    Key(
        "task",
        kinds.choice("auto", "generate", "embed"),
        "what the model does; auto: embed for a sentence-transformers folder, else generate",
    ),
    Key(
        "tool_parser",
        kinds.choice("auto", "none", "hermes", "llama3", "mistral"),
        "how the model writes tool calls; auto: as its chat template shows",
    ),
    Key(
        "reasoning_parser",
        kinds.choice("auto", "none", "think"),
        "how the model marks its reasoning; auto: as its chat template shows",
    ),
    Key("preload", kinds.boolean(), "load at start; the server is ready only then"),
    Key("pinned", kinds.boolean(), "never evict to make room for another model"),
    Key("trust_remote_code", kinds.boolean(), "let the checkpoint bring and run its own Python code"),
    Key(
        "allow_pickle",
        kinds.boolean(),
        "accept pickled weights (*.bin, *.pt), which can run code when loaded",
    ),
    # `defaults` is a section of its own and read by `_read_model`.
)
MEMORY_KEYS = table(
    Key("gpu", _BUDGET, "share or bytes of each GPU for models; default 90%"),
    Key("host", _BUDGET, "share or bytes of main memory for models on the CPU; default: 80% of what is free"),
)
