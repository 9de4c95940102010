"""Composition root: builds every object once, hands each what it needs, and runs the server's life.

Life: listen at once → preload → serve → on SIGTERM or Ctrl-C be not ready, serve on for `shutdown_grace`,
refuse new requests, let the running ones finish within `shutdown_timeout` of the signal, end every worker,
exit. A second signal ends everything at once. SIGHUP re-reads models.yaml.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from inference_server import __version__
from inference_server.access.configured import configured_keys
from inference_server.access.gate import Gate
from inference_server.access.keys import Key
from inference_server.api.application import build_application
from inference_server.api.connection import ConnectionLimits, GuardedProtocol
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.generation.door import Door
from inference_server.generation.services import build_services
from inference_server.model_manager.arrival import prepare_message
from inference_server.model_manager.learning import LearningLauncher
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.overheads import OverheadStore
from inference_server.model_manager.plan import is_scripted
from inference_server.model_manager.planning import planner_for
from inference_server.model_manager.reload import Reloader, ReloadReport
from inference_server.telemetry.logs import setup_logging
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.tracer import Tracer, tracer_for
from inference_server.worker.launcher import ForkServer, ForkServerLauncher
from inference_server.worker.protocol import Progress

BACKLOG = 2048
IDLE_CONNECTION_S = 75  # longer than clients and proxies keep theirs: who closes first must not be the server
LOAD_TIMES_FILE = "load-times.json"  # in the cache folder
GC_THRESHOLDS = (2_000, 10, 10)
ENDING_S = 1.0  # of the time to shut down, for ending workers and connections
DISPLAY_INTERVAL_S = 0.1
logger = logging.getLogger(__name__)


ProgressDisplay = Callable[[], AbstractContextManager[Callable[[Progress], None]]]


def serve(settings: Settings, catalog: Catalog, display: ProgressDisplay, read: Callable[[], Catalog]) -> int:
    """Serve until a signal ends it; returns the process's exit status.

    `display` shows how far the preloads have come, while it is entered. `read` gives the catalog as the
    configuration says at that moment.

    Raises:
        ConfigError: the address cannot be listened on, or what traces need is not installed.
    """
    setup_logging(settings.log_level, json_lines=settings.log_json)
    tracer = tracer_for(settings.otlp_traces_endpoint, os.environ)
    try:
        with _listen(settings) as sock:
            return uvloop.run(_run(settings, catalog, sock, display, read, tracer))
    finally:
        tracer.shut_down(_flush_s(settings, tracer))


def pull(settings: Settings, spec: ModelSpec, on_progress: Callable[[Progress], None]) -> int:
    """Fetch and convert one model into the cache; returns the exit status.

    Raises:
        FetchFailed: with the reason.
    """

    async def fetch() -> None:
        fork_server = _fork_server(settings, [spec])
        try:
            await _launcher(fork_server, settings).prepare(prepare_message(spec, settings), on_progress)
        finally:
            await fork_server.stop()

    uvloop.run(fetch())
    return 0


async def _run(
    settings: Settings,
    catalog: Catalog,
    sock: socket.socket,
    display: ProgressDisplay,
    read: Callable[[], Catalog],
    tracer: Tracer,
) -> int:
    fork_server = _fork_server(settings, catalog.models.values())
    fork_server.start()  # its imports take seconds and go on while we set up
    metrics = Metrics(catalog.models)
    overheads = OverheadStore(Path(settings.cache_dir))
    manager = ModelManager(
        catalog,
        settings,
        LearningLauncher(_launcher(fork_server, settings), overheads),
        planner=planner_for(settings, overheads),
        observer=metrics,
        load_times=LoadTimes(Path(settings.cache_dir) / LOAD_TIMES_FILE),
    )
    services = build_services(manager, settings, metrics)
    gate = Gate(configured_keys(settings, catalog))

    def read_all() -> tuple[Catalog, list[Key]]:
        models = read()
        return models, configured_keys(settings, models)

    def apply(found: tuple[Catalog, list[Key]]) -> ReloadReport:
        models, keys = found
        report = manager.reload(models)  # which may refuse; the keys then stay, too
        gate.replace(keys)
        return report

    reloader = Reloader(read_all, apply)
    application = build_application(
        settings=settings,
        manager=manager,
        services=services,
        metrics=metrics,
        reload=reloader.reload,
        gate=gate,
        tracer=tracer,
    )
    http = _HttpServer(application, settings)
    stop = asyncio.Event()
    with _signals(stop), _reloading_on_hangup(reloader):
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        serving.add_done_callback(lambda _: stop.set())  # whoever cannot listen any more serves nobody
        try:
            ending_s = _ending_s(settings) + _flush_s(settings, tracer)
            return await _live(settings, sock, manager, services.door, stop, display, ending_s)
        finally:
            await manager.stop()  # before the listener: streams that are left get their error event
            http.should_exit = True
            await asyncio.wait({serving})
            await fork_server.stop()
            serving.result()  # raises what has ended the listener, if that was an error


async def _live(
    settings: Settings,
    sock: socket.socket,
    manager: ModelManager,
    door: Door,
    stop: asyncio.Event,
    display: ProgressDisplay,
    ending_s: float,
) -> int:
    """Preload, serve until told to stop, drain; returns the exit status with `ending_s` left of the time."""
    await manager.start()
    stopping = asyncio.create_task(stop.wait())
    with display() as show:
        while not (stop.is_set() or manager.preload_done.is_set()):
            _show_preloads(manager, show)
            await asyncio.wait({stopping}, timeout=DISPLAY_INTERVAL_S)
    if not stop.is_set() and manager.preload_error is not None:
        stopping.cancel()
        print(f"error: {manager.preload_error.message}", file=sys.stderr)  # noqa: T201
        return 1
    _spare_collections()
    if not stop.is_set():
        _say_ready(settings, sock.getsockname()[1], manager)
    await stopping
    await _take_leave(settings, manager, door, ending_s)
    return 0


async def _take_leave(settings: Settings, manager: ModelManager, door: Door, ending_s: float) -> None:
    """Returns when nobody is inside any more, at the latest `ending_s` before the process must have ended."""
    loop = asyncio.get_running_loop()
    wait_s = settings.shutdown_timeout - ending_s
    end_s = loop.time() + wait_s
    door.announce_leaving()
    await manager.stop_preloading()
    await asyncio.sleep(min(settings.shutdown_grace, wait_s))
    door.shut_down()
    logger.info("draining: %d requests in progress", door.num_requests)
    # The door first: who has passed it and is not yet at the manager must not find that shut.
    await door.emptied(end_s - loop.time())
    if not await manager.drain(end_s - loop.time()):
        logger.warning("%d requests did not finish in time and were ended", door.num_requests)


def _ending_s(settings: Settings) -> float:
    """What workers and connections get of it, at its end."""
    return min(ENDING_S, settings.shutdown_timeout / 3)


def _flush_s(settings: Settings, tracer: Tracer) -> float:
    """What the last spans get of the time to shut down."""
    return min(tracer.flush_s, settings.shutdown_timeout / 6)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling."""

    def __init__(self, application: Starlette, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=functools.partial(GuardedProtocol, limits=_limits(settings)),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_CONNECTION_S,
                root_path=settings.root_path,
                ssl_keyfile=settings.ssl_keyfile,
                ssl_certfile=settings.ssl_certfile,
                timeout_graceful_shutdown=_ending_s(settings) / 3,  # type: ignore[arg-type]  # any number
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the composition root's."""
        yield


def _limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        send_timeout_s=settings.send_timeout,
    )


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains; the second ends the process at once, workers included."""

    def received() -> None:
        if stop.is_set():
            sys.stderr.write("stopping at once\n")
            sys.stderr.flush()
            os._exit(130)  # every worker sees its channel close and ends by itself
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _reloading_on_hangup(reloader: Reloader[Any]) -> Iterator[None]:
    """SIGHUP re-reads the configuration; one that is wrong is logged, and the old one stays."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await reloader.reload()
        except ConfigError as error:
            logger.error("the configuration is not reloaded, the old one stays: %s", error.message)

    def received() -> None:
        task = loop.create_task(reload(), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, received)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in reloads:
            task.cancel()


def _listen(settings: Settings) -> socket.socket:
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    takes_both = host == "::" and socket.has_dualstack_ipv6()  # IPv4 clients, too
    try:
        return socket.create_server(
            (host, settings.port), family=family, backlog=BACKLOG, dualstack_ipv6=takes_both
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Stop what uses that port, or choose another with --port.",
            param="port",
        ) from None


def _show_preloads(manager: ModelManager, show: Callable[[Progress], None]) -> None:
    for status in manager.snapshot():
        if status.spec.preload and status.progress is not None:
            stage, fraction = status.progress
            show(Progress(stage=stage, fraction=fraction))


def _spare_collections() -> None:
    """What stands now stays: no collection walks through it, and they come after more new objects.

    Nearly all of a request's objects go with their last reference. +14 % requests per second (RESULTS.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _say_ready(settings: Settings, port: int, manager: ModelManager) -> None:
    """What a newcomer copies; a program that reads log lines gets one."""
    scheme = "https" if settings.ssl_certfile else "http"
    host = settings.host.strip("[]")
    host = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{host}:{port}"
    models = manager.snapshot()
    model = next((status.name for status in models if status.spec.preload), models[0].name)
    key = (
        " -H 'Authorization: Bearer '$HELIXFLOW_API_KEY" if settings.api_key or settings.api_key_file else ""
    )
    question = "What is the capital of France? One sentence."
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{question}"}}]}}'
    if settings.log_json:
        logger.info("HelixFlow %s is ready on %s", __version__, url)
        return
    lines = [
        f"HelixFlow {__version__} is ready on {url}",
        "Try it:",
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        "Stop it with Ctrl-C.",
    ]
    print("\n".join(lines), flush=True)  # noqa: T201


def _fork_server(settings: Settings, specs: Iterable[ModelSpec]) -> ForkServer:
    return ForkServer(preload_torch=any(map(_needs_torch, specs)), json_logs=settings.log_json)


def _launcher(fork_server: ForkServer, settings: Settings) -> ForkServerLauncher:
    return ForkServerLauncher(
        fork_server, hang_timeout_s=settings.hang_timeout, load_timeout_s=settings.load_timeout
    )


def _needs_torch(spec: ModelSpec) -> bool:
    return not is_scripted(spec)
