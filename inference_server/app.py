"""Composition root: builds every object once, hands each what it needs, and runs the server's life.

Life: listen at once → preload → serve → on SIGTERM or Ctrl-C stop taking requests, let the running ones
finish within `shutdown_timeout`, end every worker, exit. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from inference_server.api.application import build_application
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import HelixFlowError
from inference_server.generation.service import GenerationService
from inference_server.model_manager.manager import ModelManager
from inference_server.telemetry.logs import setup_logging
from inference_server.telemetry.metrics import Metrics
from inference_server.worker.launcher import ForkServer, ForkServerLauncher
from inference_server.worker.protocol import Prepare, Prepared, Progress

logger = logging.getLogger(__name__)


def serve(settings: Settings, catalog: Catalog) -> int:
    """Serve until a signal ends it; returns the process's exit status."""
    setup_logging(settings.log_level, json_lines=settings.log_json)
    return uvloop.run(_Server(settings, catalog).run())


def pull(settings: Settings, spec: ModelSpec, on_progress: Callable[[Progress], None]) -> int:
    """Fetch and convert one model into the cache; returns the exit status.

    Raises:
        FetchFailed: with the reason.
    """

    async def fetch() -> Prepared:
        fork_server = ForkServer(preload_torch=not spec.source.startswith("scripted"))
        launcher = _launcher(fork_server, settings)
        try:
            return await launcher.prepare(prepare_message(settings, spec), on_progress)
        finally:
            await fork_server.stop()

    uvloop.run(fetch())
    return 0
