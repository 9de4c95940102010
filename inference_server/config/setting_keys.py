"""The table of the server's settings: kind, help text and group of each. Defaults are in `settings.py`.

Flags, HELIXFLOW_* variables, the `server:` section of models.yaml, `serve --help` and the JSON Schema all
come from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inference_server.config import kinds
from inference_server.config.keys import Key
from inference_server.config.model_keys import (
    DEVICE,
    DTYPE,
    KERNELS,
    MODEL_LEN,
    NAME_EXPECTED,
    NAME_PATTERN,
    QUANTIZATION,
)

AT_EACH_MODEL = "write it at the model, or under `defaults:` for all models"
AT_ONE_MODEL = "write it at the model"
ON_THE_COMMAND_LINE = "is for the command line and the environment only"
_BOOL = kinds.boolean()
_FILE = kinds.text("FILE")
_ADDRESS = kinds.text("ADDRESS", r"[A-Za-z0-9.:_\[\]-]+", "an address or host name")
_KEY = kinds.text("KEY", r"[!-~]+", "printable characters without blanks")


@dataclass(frozen=True, slots=True)
class Setting:
    """A key with its group in `--help`. `instead`: why and where else than in `server:` it is written."""

    key: Key
    group: str
    instead: str | None = None


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    return f"HELIXFLOW_{name.upper()}"


def flag_name(name: str) -> str:
    """The flag of a setting; MODEL is given by position."""
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"


_LISTENING = (
    Key("host", _ADDRESS, "address to listen on"),
    Key("port", kinds.integer(0, 65535), "port to listen on; 0: any free one, which is printed"),
    Key(
        "api_key",
        _KEY,
        "key that clients must send; safer in HELIXFLOW_API_KEY than on the command line",
        secret=True,
    ),
    Key(
        "inference_api_key",
        _KEY,
        "a second key that may ask models, but not load, unload or reload them",
        secret=True,
    ),
    Key("api_key_file", _FILE, "YAML file of keys with scopes, limits and models (docs/security.md)"),
    Key("insecure_no_auth", _BOOL, "allow an address that other machines can reach without any API key"),
    Key("ssl_keyfile", _FILE, "TLS private key (PEM)"),
    Key("ssl_certfile", _FILE, "TLS certificate chain (PEM)"),
    Key(
        "root_path",
        kinds.text("PATH", r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+", "a path such as /llm"),
        "path prefix that a proxy in front strips",
    ),
)
_MODEL = (
    Key("max_model_len", MODEL_LEN, "longest prompt plus answer, in tokens"),
    Key("dtype", DTYPE, "number format of weights and computation"),
    Key("quantization", QUANTIZATION, "how weights are stored on the device"),
    Key("kernels", KERNELS, "what computes on a CPU: auto, native or torch"),
    Key("device", DEVICE, "auto, cpu, cuda or cuda:N"),
)
_ONE_MODEL = (
    Key(
        "served_model_name",
        kinds.text("NAME", NAME_PATTERN, NAME_EXPECTED),
        "name under which clients ask for MODEL",
    ),
    Key("trust_remote_code", _BOOL, "let MODEL's checkpoint bring and run its own Python code"),
)
_BATCHING = (
    Key("max_num_seqs", kinds.integer(1, 65536), "sequences that run at once, per model"),
    Key("max_num_batched_tokens", kinds.integer(1, 1048576), "tokens in one step, per model"),
    Key("max_num_queued_reqs", kinds.integer(0, 1048576), "waiting requests per model; more get a 429"),
    Key("max_queued_total", kinds.integer(0, 1048576), "waiting requests in all; more get a 429"),
    Key("max_queued_tokens", kinds.integer(1, 2**40), "waiting prompts' tokens per model; more get a 429"),
    Key("max_queued_tokens_total", kinds.integer(1, 2**40), "waiting prompts' tokens in all; more get a 429"),
    Key("enable_prefix_caching", _BOOL, "reuse the KV cache of prompts that begin alike"),
    Key(
        "prefill_slowdown",
        kinds.number(0, 1000),
        "a long prompt may make a step this many times as long for running streams; 0: without limit",
    ),
    Key(
        "num_threads", kinds.integer(0, 4096), "CPU threads of each model worker; 0: as many as it has cores"
    ),
)
_MEMORY = (
    (
        Key("gpu_memory_utilization", kinds.share(), "share of each GPU's memory for models"),
        "the same setting is `memory.gpu`; write it there",
    ),
    (
        Key("host_memory", kinds.size(), "main memory for models on the CPU"),
        "the same setting is `memory.host`; write it there",
    ),
)
_SWAPPING = (
    Key(
        "eviction_policy",
        kinds.choice("cost", "lru"),
        "which idle model makes room: cost (idle time x bytes freed / seconds to reload) or lru",
    ),
    Key(
        "collate",
        _BOOL,
        "serve all that ask for a model before the next one takes its place; false: in order of arrival",
    ),
    Key(
        "min_residency",
        kinds.duration(zero=True),
        "a model that was just loaded keeps its memory this long while it is used; no effect without collate",
    ),
    Key(
        "max_swap_wait",
        kinds.duration(zero=True),
        "who waits longer for a model gets its turn though others are in use; no effect without collate",
    ),
)
_LIMITS = (
    Key("max_body_bytes", kinds.size(1024), "largest request body"),
    Key("max_header_bytes", kinds.size(1024), "largest request line and headers; more get a 431"),
    Key("header_timeout", kinds.duration(), "a client that sends its headers more slowly is cut off"),
    Key("body_timeout", kinds.duration(), "a client that sends its body more slowly is cut off"),
    Key(
        "send_timeout", kinds.duration(), "a client that leaves what it was sent unread for longer is cut off"
    ),
    Key("request_timeout", kinds.duration(), "a request that takes longer gets a 504"),
    Key("load_timeout", kinds.duration(), "a model load that takes longer has failed"),
    Key("hang_timeout", kinds.duration(), "a worker that is silent for longer is replaced"),
    Key(
        "worker_memory_limit",
        kinds.size(1024**2),
        "main memory that a model's process may take for itself; more fails its load, or the request",
    ),
    Key(
        "shutdown_timeout",
        kinds.duration(zero=True),
        "from the signal to stop until the server has ended; running requests get nearly all of it",
    ),
    Key(
        "shutdown_grace",
        kinds.duration(zero=True),
        "of that, how long new requests are still served while load balancers find the server not ready",
    ),
)
_OPERATION = (
    Key("cache_dir", kinds.text("FOLDER"), "fetched and converted checkpoints; also $HELIXFLOW_CACHE"),
    Key("log_level", kinds.choice("debug", "info", "warning", "error"), "least severe message to log"),
    Key("log_json", _BOOL, "log one JSON object per line"),
    Key(
        "otlp_traces_endpoint",
        kinds.text("URL", r"https?://[!-~]+", "an address such as http://127.0.0.1:4318/v1/traces"),
        "send OpenTelemetry traces there (docs/observability.md)",
    ),
)


def _settings() -> Mapping[str, Setting]:
    rows = [
        Setting(
            Key("config", _FILE, "models.yaml to read; default: ./models.yaml"), "Model", ON_THE_COMMAND_LINE
        ),
        Setting(
            Key("model", kinds.text("MODEL"), "a configured name, or a source such as org/name or ./folder"),
            "Model",
            ON_THE_COMMAND_LINE,
        ),
        *(Setting(key, "Model", AT_EACH_MODEL) for key in _MODEL),
        *(Setting(key, "Model", AT_ONE_MODEL) for key in _ONE_MODEL),
        *(Setting(key, "Listening and access") for key in _LISTENING),
        *(Setting(key, "Batching and queues") for key in _BATCHING),
        *(Setting(key, "Memory", instead) for key, instead in _MEMORY),
        *(Setting(key, "Swapping") for key in _SWAPPING),
        *(Setting(key, "Limits") for key in _LIMITS),
        *(Setting(key, "Operation") for key in _OPERATION),
    ]
    return MappingProxyType({row.key.name: row for row in rows})


SETTINGS = _settings()
