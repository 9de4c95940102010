"""The keys of models.yaml and how its sections become specs. It knows one text at a time, no settings.

memory:    → MemorySpec
defaults:  what a model gets that does not say it itself
models:    → ModelSpec per name
server:    left to settings.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.config import kinds
from inference_server.config.document import Located
from inference_server.config.keys import Key, Problems, entries_of, read_section, table
from inference_server.config.spec import KvCacheSpec, MemorySpec, ModelSpec, SamplingDefaults
from inference_server.config.units import parse_bytes, parse_duration, parse_share

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
NAME_EXPECTED = "a name of letters, digits and ._:/@+- (128 at most)"
MAX_TOKENS = 2**31 - 1

QUANTIZATION = kinds.choice(
    "none",
    "bnb-nf4",
    "bnb-int8",
    later=("int8", "int4", "auto", "awq", "gptq", "fp8", "compressed-tensors", "gguf"),
)
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
_KV_CACHE_KEYS = table(
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
    Key("repetition_penalty", kinds.number(0, 10, above=True), "above 1 discourages any token seen before"),
    Key("presence_penalty", kinds.number(-2, 2), "above 0 discourages tokens already generated"),
    Key(
        "frequency_penalty",
        kinds.number(-2, 2),
        "above 0 discourages tokens by how often they were generated",
    ),
    Key("max_tokens", kinds.integer(1, MAX_TOKENS), "answer length where the request sets none"),
)
SHARED_KEYS = table(
    Key("quantization", QUANTIZATION, "how weights are stored on the device"),
    Key("device", DEVICE, "auto: the GPU if the model fits there, else the CPU"),
    Key(
        "dtype", DTYPE, "number format of weights and computation; auto: as the checkpoint and device suggest"
    ),
    Key("max_model_len", MODEL_LEN, "longest prompt plus answer, in tokens; default: what the model allows"),
    Key("kv_cache", _KV_CACHE, "KV memory to reserve; default: 8 x max_model_len tokens"),
    Key("keep_alive", _KEEP_ALIVE, "idle time after which the model may be unloaded; -1: never"),
)
MODEL_KEYS = table(
    Key(
        "source",
        kinds.text("SOURCE"),
        "hub id (org/name), folder (./dir), GGUF file (dir/file.gguf), wheel (pypi:PROJECT==VERSION/member) or scripted",
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
    Key("task", kinds.choice("generate", later=("embed",)), "what the model does"),
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
    Key("host", _BUDGET, "share or bytes of main memory for models on the CPU; default: what is free"),
)
SECTIONS = ("memory", "defaults", "models", "server")
_NAME = kinds.text("NAME", NAME_PATTERN, NAME_EXPECTED)


@dataclass(frozen=True, slots=True)
class Entries:
    """What a models.yaml says. `origins`: model → key → where its value was written."""

    models: tuple[ModelSpec, ...]
    memory: MemorySpec
    memory_origins: Mapping[str, str]
    origins: Mapping[str, Mapping[str, str]]
    server: Located


def read_entries(document: Located) -> Entries:
    """Reads all sections but `server`, which is returned as it is.

    Raises:
        ConfigError: one line per problem.
    """
    problems = Problems()
    sections = _sections(document, problems)
    memory, memory_origins = _read_memory(sections["memory"], problems)
    shared = _read_shared(sections["defaults"], problems)
    models: list[ModelSpec] = []
    origins: dict[str, Mapping[str, str]] = {}
    for name, raw in entries_of(sections["models"], "models", problems).items():
        spec, found = _read_model(name, raw, shared, problems)
        if spec is not None:
            models.append(spec)
            origins[name] = found
    _refuse_shared_names(models, sections["models"], problems)
    problems.raise_if_any()
    return Entries(tuple(models), memory, memory_origins, origins, sections["server"])


def _sections(document: Located, problems: Problems) -> dict[str, Located]:
    found = entries_of(document, "", problems)
    for name, raw in found.items():
        if name not in SECTIONS:
            hint = kinds.did_you_mean(name, SECTIONS) or f"; the sections are {', '.join(SECTIONS)}"
            problems.add(raw.where, f"unknown key `{name}`{hint}")
    return {name: found.get(name, Located(None, document.where)) for name in SECTIONS}


def _read_memory(section: Located, problems: Problems) -> tuple[MemorySpec, Mapping[str, str]]:
    values = read_section(section, MEMORY_KEYS, "memory", problems)
    gpu_fraction, gpu_bytes = values.get("gpu", (MemorySpec().gpu_fraction, None))
    host_fraction, host_bytes = values.get("host", (None, None))
    memory = MemorySpec(
        gpu_fraction=gpu_fraction, gpu_bytes=gpu_bytes, host_fraction=host_fraction, host_bytes=host_bytes
    )
    return memory, _places(section, values)


def _read_shared(section: Located, problems: Problems) -> dict[str, tuple[Any, str]]:
    """Values of the `defaults:` section with where each was written."""
    own = entries_of(section, "defaults", problems)
    for name in sorted(set(own) & (set(MODEL_KEYS) - set(SHARED_KEYS))):
        problems.add(own[name].where, f"`{name}` cannot be a default for all models; write it at each model")
    known = Located(
        {n: raw for n, raw in own.items() if n not in set(MODEL_KEYS) - set(SHARED_KEYS)}, section.where
    )
    values = _read_with_kv_cache(known, SHARED_KEYS, "defaults", problems)
    return {name: (value, f"{own[name].where} (defaults)") for name, value in values.items()}


def _read_model(
    name: str, raw: Located, shared: Mapping[str, tuple[Any, str]], problems: Problems
) -> tuple[ModelSpec | None, Mapping[str, str]]:
    path = f"models.{name}"
    try:
        _NAME.parse(name)
    except ValueError as error:
        problems.add(raw.where, f"models: {error}")
        return None, {}
    own = dict(entries_of(raw, path, problems))
    sampling = own.pop("defaults", Located(None, raw.where))
    chosen = read_section(sampling, SAMPLING_KEYS, f"{path}.defaults", problems)
    values = _read_with_kv_cache(Located(own, raw.where), MODEL_KEYS, path, problems)
    if own.get("source", Located(None, "")).value is None:
        problems.add(raw.where, f"{path}: needs a `source`, such as `source: org/name`")
    if "source" not in values:
        return None, {}
    origins = {key: where for key, (_, where) in shared.items()} | _places(raw, values)
    origins |= {f"defaults.{key}": where for key, where in _places(sampling, chosen).items()}
    merged = {key: value for key, (value, _) in shared.items()} | values
    if "keep_alive" in merged:
        merged["keep_alive_s"] = merged.pop("keep_alive")
    return ModelSpec(name=name, defaults=SamplingDefaults(**chosen), **merged), origins


def _read_with_kv_cache(
    section: Located, keys: Mapping[str, Key], path: str, problems: Problems
) -> dict[str, Any]:
    """`read_section`, with `kv_cache` also as a mapping of its own (`tokens: N` or `bytes: SIZE`)."""
    own = dict(entries_of(section, path, problems))
    detailed = own.get("kv_cache")
    if detailed is None or not isinstance(detailed.value, dict):
        return read_section(section, keys, path, problems)
    del own["kv_cache"]
    values = read_section(Located(own, section.where), keys, path, problems)
    found = read_section(detailed, _KV_CACHE_KEYS, f"{path}.kv_cache", problems)
    if len(found) == 2:
        problems.add(detailed.where, f"{path}.kv_cache: give `bytes` or `tokens`, not both")
    elif found:
        values["kv_cache"] = KvCacheSpec(num_bytes=found.get("bytes"), num_tokens=found.get("tokens"))
    return values


def _refuse_shared_names(models: list[ModelSpec], section: Located, problems: Problems) -> None:
    """A name or alias belongs to one model."""
    owners = {spec.name: spec.name for spec in models}
    places = section.value if isinstance(section.value, dict) else {}
    for spec in models:
        for alias in spec.aliases:
            if alias in owners:
                whose = (
                    "its own name"
                    if owners[alias] == spec.name
                    else f"already taken by models.{owners[alias]}"
                )
                problems.add(places[spec.name].where, f"models.{spec.name}.aliases: {alias!r} is {whose}")
            owners.setdefault(alias, spec.name)


def _places(section: Located, values: Mapping[str, Any]) -> dict[str, str]:
    entries = section.value if isinstance(section.value, dict) else {}
    return {name: entries[name].where for name in values if name in entries}
