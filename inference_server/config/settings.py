"""Every setting of the server process. (Skeleton: fields are final, resolution follows.)"""

from __future__ import annotations

from pathlib import Path

import msgspec


def default_cache_dir() -> str:
    """Where fetched and converted checkpoints live when nothing else is said."""
    return str(Path.home() / ".cache" / "helixflow")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The resolved settings. Durations are seconds, sizes are bytes."""

    config: str | None = None
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    insecure_no_auth: bool = False
    root_path: str = ""
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    served_model_name: str | None = None
    max_model_len: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_num_queued_reqs: int = 128
    max_queued_total: int = 512
    enable_prefix_caching: bool = True
    gpu_memory_utilization: float | None = None
    host_memory: int | None = None
    cache_dir: str = msgspec.field(default_factory=default_cache_dir)
    max_body_bytes: int = 2 * 1024 * 1024
    request_timeout: float = 600.0
    load_timeout: float = 600.0
    hang_timeout: float = 120.0
    shutdown_timeout: float = 30.0
    num_threads: int = 0
    torch_preload: str = "auto"
    log_level: str = "info"
    log_json: bool = False
