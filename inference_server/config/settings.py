"""Every setting of the server, its default, and the order default < file < HELIXFLOW_* < flag.

It knows the keys and the rules between them, not where a file is (`configuration.py`) nor what any
setting does.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from inference_server.config.document import Located
from inference_server.config.keys import Problems, read_value
from inference_server.config.kinds import did_you_mean
from inference_server.config.setting_keys import SETTINGS, env_name, flag_name

CACHE_VARIABLE = "HELIXFLOW_CACHE"  # the short form of HELIXFLOW_CACHE_DIR
CLIENT_VARIABLES = frozenset({"HELIXFLOW_BASE_URL"})  # read by client commands, not by the server
# Kubernetes puts these into every pod beside a Service named helixflow or helixflow-something.
_SERVICE_LINK = re.compile(r".*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")


def default_cache_dir() -> str:
    """Where fetched and converted checkpoints live when nothing else is said."""
    return str(Path.home() / ".cache" / "helixflow")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The resolved settings. Durations are seconds, sizes are bytes; `setting_keys.py` explains each.

    `config` is the models.yaml that was read, `model` the MODEL of `helixflow serve MODEL`. What is None
    leaves the decision to models.yaml or to the model itself.
    """

    config: str | None = None
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    inference_api_key: str | None = None
    api_key_file: str | None = None
    insecure_no_auth: bool = False
    root_path: str = ""
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    served_model_name: str | None = None
    max_model_len: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kernels: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_num_queued_reqs: int = 128
    max_queued_total: int = 512
    max_queued_tokens: int = 1_048_576
    max_queued_tokens_total: int = 4_194_304
    enable_prefix_caching: bool = True
    prefill_slowdown: float = 2.5
    gpu_memory_utilization: float | None = None
    host_memory: int | None = None
    eviction_policy: str = "cost"
    collate: bool = True
    min_residency: float = 2.0
    max_swap_wait: float = 10.0
    cache_dir: str = msgspec.field(default_factory=default_cache_dir)
    max_body_bytes: int = 2 * 1024 * 1024
    max_header_bytes: int = 16 * 1024
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    request_timeout: float = 600.0
    load_timeout: float = 600.0
    hang_timeout: float = 120.0
    shutdown_timeout: float = 30.0
    shutdown_grace: float = 0.0
    worker_memory_limit: int | None = None
    num_threads: int = 0
    log_level: str = "info"
    log_json: bool = False
    otlp_traces_endpoint: str | None = None


def changed_settings(old: Settings, new: Settings) -> tuple[str, ...]:
    """Names of the settings that differ, in their order."""
    names = Settings.__struct_fields__
    return tuple(name for name in names if getattr(old, name) != getattr(new, name))


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings with, for each that is not left at its default, the place it came from."""

    settings: Settings
    origins: Mapping[str, str]


def resolve_settings(
    file_values: Mapping[str, object], env: Mapping[str, str], flags: Mapping[str, object]
) -> Settings:
    """The settings from the file's `server:` section, the environment and the flags, the last winning.

    A flag whose value is None was not given; an empty variable counts as not set.

    Raises:
        ConfigError: one line per problem, each naming the key and where it came from.
    """
    return resolve_with_origins(file_values, env, flags).settings


def resolve_with_origins(
    file_values: Mapping[str, object], env: Mapping[str, str], flags: Mapping[str, object]
) -> ResolvedSettings:
    """As `resolve_settings`, and tells where each value came from.

    `file_values` may hold `Located` values; their places appear in messages.
    """
    problems = Problems()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in (_from_file(file_values, problems), _from_env(env, problems), _from_flags(flags, problems)):
        for name, (label, raw) in source.items():
            key = SETTINGS[name].key
            read_value(key, raw, label, problems, into=values)
            origins[name] = raw.where
    problems.raise_if_any()
    if "cache_dir" in values:
        values["cache_dir"] = os.path.expanduser(values["cache_dir"])
    settings = Settings(**values)
    _check_rules(settings, origins)
    return ResolvedSettings(settings, MappingProxyType(origins))


_Raw = dict[str, tuple[str, Located]]  # setting → (how a message calls it, its raw value)


def _from_file(values: Mapping[str, object], problems: Problems) -> _Raw:
    found: _Raw = {}
    for name, value in values.items():
        raw = value if isinstance(value, Located) else Located(value, "server section")
        if name not in SETTINGS:
            problems.add(raw.where, f"unknown key `server.{name}`{did_you_mean(name, SETTINGS)}")
        elif SETTINGS[name].instead is not None:
            problems.add(raw.where, f"`server.{name}`: {SETTINGS[name].instead}")
        elif raw.value is not None:
            found[name] = (f"server.{name}", raw)
    return found


def _from_env(env: Mapping[str, str], problems: Problems) -> _Raw:
    by_variable = {env_name(name): name for name in SETTINGS}
    known = {*by_variable, *CLIENT_VARIABLES, CACHE_VARIABLE}
    found: _Raw = {}
    for variable in sorted(env):
        value = env[variable]
        if not variable.startswith("HELIXFLOW_") or not value or _is_service_link(variable, value):
            continue
        if variable not in known:
            problems.add("environment", f"unknown variable {variable}{did_you_mean(variable, known)}")
        elif variable in by_variable:
            found[by_variable[variable]] = (variable, Located(value, variable))
    if "cache_dir" not in found and env.get(CACHE_VARIABLE):
        found["cache_dir"] = (CACHE_VARIABLE, Located(env[CACHE_VARIABLE], CACHE_VARIABLE))
    return found


def _from_flags(flags: Mapping[str, object], problems: Problems) -> _Raw:
    found: _Raw = {}
    for name, value in flags.items():
        if name not in SETTINGS:
            problems.add(flag_name(name), f"unknown flag{did_you_mean(name, SETTINGS)}")
        elif value is not None:
            found[name] = (flag_name(name), Located(value, flag_name(name)))
    return found


def _is_service_link(variable: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable) is not None:
        return True
    return variable.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None


# ---------------------------------------------------------------- rules between settings


def _check_rules(settings: Settings, origins: Mapping[str, str]) -> None:
    problems = Problems()
    _check_access(settings, origins, problems)
    if (settings.ssl_keyfile is None) != (settings.ssl_certfile is None):
        given = "ssl_keyfile" if settings.ssl_keyfile else "ssl_certfile"
        other = "ssl_certfile" if settings.ssl_keyfile else "ssl_keyfile"
        problems.add(origins[given], f"TLS needs both a key and a certificate; give {flag_name(other)} too")
    if settings.model is None:
        for name in ("served_model_name", "trust_remote_code"):
            if name in origins:
                problems.add(origins[name], f"{name} is about one model; name it: helixflow serve MODEL")
    if settings.shutdown_grace > settings.shutdown_timeout:
        problems.add(
            origins["shutdown_grace" if "shutdown_grace" in origins else "shutdown_timeout"],
            f"shutdown_grace ({settings.shutdown_grace:g} s) is part of shutdown_timeout "
            f"({settings.shutdown_timeout:g} s) and must not be longer",
        )
    if settings.max_num_seqs > settings.max_num_batched_tokens:
        problems.add(
            origins.get("max_num_batched_tokens", origins.get("max_num_seqs", "")),
            f"max_num_batched_tokens ({settings.max_num_batched_tokens}) must be at least "
            f"max_num_seqs ({settings.max_num_seqs}): each running sequence needs a token per step",
        )
    problems.raise_if_any()


def _check_access(settings: Settings, origins: Mapping[str, str], problems: Problems) -> None:
    if settings.api_key is not None and settings.insecure_no_auth:
        problems.add(
            origins["insecure_no_auth"],
            f"contradicts the API key from {origins['api_key']}; remove one of the two",
        )
    if settings.inference_api_key is not None and settings.inference_api_key == settings.api_key:
        problems.add(origins["inference_api_key"], "is the same as the API key; give it another value")
    is_open = settings.api_key is None and settings.api_key_file is None
    if settings.inference_api_key is not None and is_open:
        problems.add(
            origins["inference_api_key"],
            "inference_api_key is of no use alone: without an API key everybody may do everything; "
            "set HELIXFLOW_API_KEY or --api-key-file too",
        )
    if settings.api_key_file is not None and settings.insecure_no_auth:
        problems.add(origins["insecure_no_auth"], "contradicts api_key_file; remove one of the two")
    if is_open and not settings.insecure_no_auth and not is_loopback(settings.host):
        problems.add(
            origins["host"],
            f"refusing to listen on {settings.host} without an API key, where other machines can reach it; "
            "set HELIXFLOW_API_KEY (or --api-key, --api-key-file), or allow it with --insecure-no-auth",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
