"""Composition root: builds every object once, hands each what it needs, and runs the server's life.

Life: listen at once → preload → serve → on SIGTERM or Ctrl-C stop taking requests, let the running ones
finish within `shutdown_timeout`, end every worker, exit. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from inference_server import __version__
from inference_server.api.application import build_application
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.generation.service import GenerationService
from inference_server.model_manager.manager import ModelManager
from inference_server.telemetry.logs import setup_logging
from inference_server.telemetry.metrics import Metrics
from inference_server.worker.launcher import ForkServer, ForkServerLauncher
from inference_server.worker.protocol import Prepare, Progress

BACKLOG = 2048
logger = logging.getLogger(__name__)


def serve(settings: Settings, catalog: Catalog) -> int:
    """Serve until a signal ends it; returns the process's exit status.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    setup_logging(settings.log_level, json_lines=settings.log_json)
    with _listen(settings) as sock:
        return uvloop.run(_run(settings, catalog, sock))


def pull(settings: Settings, spec: ModelSpec, on_progress: Callable[[Progress], None]) -> int:
    """Fetch and convert one model into the cache; returns the exit status.

    Raises:
        FetchFailed: with the reason.
    """

    async def fetch() -> None:
        fork_server = ForkServer(preload_torch=_needs_torch(spec))
        try:
            await _launcher(fork_server, settings).prepare(_prepare_message(spec, settings), on_progress)
        finally:
            await fork_server.stop()

    uvloop.run(fetch())
    return 0


async def _run(settings: Settings, catalog: Catalog, sock: socket.socket) -> int:
    fork_server = ForkServer(preload_torch=any(_needs_torch(spec) for spec in catalog.models.values()))
    fork_server.start()  # its imports take seconds and go on while we set up
    metrics = Metrics()
    manager = ModelManager(catalog, settings, _launcher(fork_server, settings), observer=metrics)
    service = GenerationService(manager, settings, metrics)
    application = build_application(
        catalog=catalog, settings=settings, manager=manager, service=service, metrics=metrics
    )
    http = _HttpServer(application, settings)
    stop = asyncio.Event()
    with _signals(stop, http):
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        try:
            return await _live(settings, manager, service, serving, stop)
        finally:
            await _shut_down(http, serving, manager, fork_server)
