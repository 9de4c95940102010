"""Fakes of what surrounds the manager: workers, the launcher, the machine's memory, plans, an observer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from inference_server import errors
from inference_server.checkpoints.facts import ModelFacts
from inference_server.config.catalog import Catalog, MemorySpec, ModelSpec
from inference_server.config.settings import Settings
from inference_server.model_manager.devices import DeviceMemory
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.states import ModelState
from inference_server.types import EngineStats, GenerationRequest, MemoryReport, TokenDelta
from inference_server.worker import protocol

FACTS = ModelFacts(
    architecture="Fake",
    model_type="fake",
    dtype="float32",
    max_position_embeddings=128,
    vocab_size=10,
    eos_token_ids=frozenset({0}),
    num_layers=1,
)


class FakeWorker:
    """A worker without a process. `die` ends it; `stop`, `sleep` and `wake` take their seconds to.

    `memory` is what it says that it took; `sleep_errors` and `wake_errors` are raised, the next one first.
    """

    def __init__(
        self,
        load: protocol.Load,
        pid: int,
        stop_s: float,
        *,
        can_sleep: bool = False,
        sleep_s: float = 0.5,
        memory: MemoryReport | None = None,
    ) -> None:
        self.model = load.model
        self.is_asleep = False
        self.is_failing = False  # its process is going, and `closed` does not say so yet
        self.sleep_s = sleep_s
        self.sleep_errors: list[Exception] = []
        self.wake_errors: list[Exception] = []
        self.pid = pid
        self.stats = EngineStats()
        self.on_step: Callable[[EngineStats], None] | None = None
        self.num_requests = 0
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.num_stops = 0
        self.stop_error: Exception | None = None
        self._stop_s = stop_s
        self.ready = protocol.Ready(
            memory=memory or MemoryReport(weights_bytes=1, kv_cache_bytes=1, workspace_bytes=0, rss_bytes=0),
            device=load.device,
            dtype=load.dtype,
            max_model_len=load.max_model_len,
            kv_cache_tokens=load.kv_cache_tokens,
            vocab_size=10,
            load_seconds=0.0,
            can_sleep=can_sleep,
            why_not_sleep="" if can_sleep else "it is a fake",
        )

    @property
    def is_dying(self) -> bool:
        return self.is_failing or self.closed.done()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        if self.is_dying:
            raise errors.WorkerDied("gone")
        yield TokenDelta(request_id=request.request_id)

    async def stop(self) -> None:
        self.num_stops += 1
        if self.stop_error is not None:
            raise self.stop_error
        await asyncio.wait({self.closed}, timeout=self._stop_s)
        self.die("was stopped")

    def kill(self) -> None:
        self.die("was killed")

    async def sleep(self) -> None:
        await self._change(self.sleep_errors)
        self.is_asleep = True

    async def wake(self) -> None:
        await self._change(self.wake_errors)
        self.is_asleep = False

    async def _change(self, next_errors: list[Exception]) -> None:
        await asyncio.wait({self.closed}, timeout=self.sleep_s)
        if self.closed.done():
            raise errors.WorkerDied("gone")
        if next_errors:
            raise next_errors.pop(0)

    def die(self, reason: str = "killed") -> None:
        if not self.closed.done():
            self.closed.set_result(reason)


@dataclass
class FakeLauncher:
    """Takes `prepare_s` and `launch_s`; raises the next of `prepare_errors` / `launch_errors` first.

    `alive` are the models whose process exists; two processes of one model are a fault.
    """

    prepare_s: float = 1.0
    launch_s: float = 1.0
    stop_s: float = 0.5
    kill_s: float = 0.25  # how long a cancelled child takes to be gone
    sleep_s: float = 0.5  # to fall asleep, and to wake
    can_sleep: bool = False
    memory: MemoryReport | None = None
    prepare_errors: dict[str, list[Exception]] = field(default_factory=dict)
    launch_errors: dict[str, list[Exception]] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)
    workers: dict[str, FakeWorker] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)

    @property
    def alive(self) -> set[str]:
        return self.starting | {name for name, worker in self.workers.items() if not worker.closed.done()}

    async def prepare(
        self, message: protocol.Prepare, on_progress: Callable[[protocol.Progress], None]
    ) -> protocol.Prepared:
        name = message.source
        self.prepared.append(name)
        on_progress(protocol.Progress(stage="download", fraction=0.5))
        await asyncio.sleep(self.prepare_s)
        if self.prepare_errors.get(name):
            raise self.prepare_errors[name].pop(0)
        return protocol.Prepared(folder=f"folder-of-{name}", revision=None)

    async def launch(
        self, message: protocol.Load, on_progress: Callable[[protocol.Progress], None]
    ) -> FakeWorker:
        name = message.model
        if name in self.alive:
            raise AssertionError(f"two processes of {name}")
        self.launched.append(name)
        self.starting.add(name)
        on_progress(protocol.Progress(stage="load", fraction=0.1))
        try:
            await asyncio.sleep(self.launch_s)
            if self.launch_errors.get(name):
                raise self.launch_errors[name].pop(0)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            await asyncio.sleep(self.kill_s)
            raise
        finally:
            self.starting.discard(name)
        worker = self.workers[name] = FakeWorker(
            message,
            1000 + len(self.launched),
            self.stop_s,
            can_sleep=self.can_sleep,
            sleep_s=self.sleep_s,
            memory=self.memory,
        )
        return worker


@dataclass
class FakeMachine:
    """Device memory. `taken` is what other programs hold; workers' own bytes are counted as promised."""

    total: dict[str, int]
    taken: dict[str, int] = field(default_factory=dict)

    def devices(self) -> dict[str, DeviceMemory]:
        return {
            name: DeviceMemory(total_bytes=total, free_bytes=total - self.taken.get(name, 0))
            for name, total in self.total.items()
        }


@dataclass
class Recorder:
    """An observer that writes down what it hears."""

    states: list[tuple[str, ModelState]] = field(default_factory=list)
    loads: list[tuple[str, float, bool, str]] = field(default_factory=list)
    evictions: list[tuple[str, str]] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    sleeps: list[str] = field(default_factory=list)
    wakes: list[tuple[str, float]] = field(default_factory=list)
    waits: list[tuple[str, float]] = field(default_factory=list)
    estimates: list[tuple[str, float]] = field(default_factory=list)

    def on_state(self, model: str, state: ModelState) -> None:
        self.states.append((model, state))

    def on_load(self, model: str, seconds: float, ok: bool, source: str) -> None:
        self.loads.append((model, seconds, ok, source))

    def on_eviction(self, model: str, reason: str) -> None:
        self.evictions.append((model, reason))

    def on_sleep(self, model: str) -> None:
        self.sleeps.append(model)

    def on_wake(self, model: str, seconds: float) -> None:
        self.wakes.append((model, seconds))

    def on_swap_wait(self, model: str, seconds: float) -> None:
        self.waits.append((model, seconds))

    def on_estimate(self, model: str, error_ratio: float) -> None:
        self.estimates.append((model, error_ratio))

    def on_worker_died(self, model: str) -> None:
        self.deaths.append(model)

    def on_step(self, model: str, stats: EngineStats) -> None:
        self.steps.append(model)


def fake_planner(
    bytes_of: Mapping[str, int | Mapping[str, int]],
    planned: dict[str, dict[str, int]],
    asleep: Mapping[str, Mapping[str, int]],
) -> Callable[[ModelSpec, Path, Mapping[str, int]], Awaitable[ModelPlan]]:
    """Plans of the given bytes, on the CPU where no device is named; `planned` keeps what was free,
    `asleep` what who can sleep holds then."""

    async def plan(spec: ModelSpec, folder: Path, capacity_bytes: Mapping[str, int]) -> ModelPlan:
        planned[spec.name] = dict(capacity_bytes)
        await asyncio.sleep(0)
        wanted = bytes_of[spec.name]
        needed = {"cpu": wanted} if isinstance(wanted, int) else dict(wanted)
        return make_plan(spec.name, str(folder), needed, asleep.get(spec.name, {}))

    return plan


def make_plan(
    name: str,
    folder: str,
    bytes_by_device: Mapping[str, int],
    sleeping_bytes_by_device: Mapping[str, int] = MappingProxyType({}),
) -> ModelPlan:
    load = protocol.Load(
        model=name,
        folder=folder,
        device=next(iter(bytes_by_device)),
        dtype="float32",
        quantization="none",
        max_model_len=128,
        kv_cache_tokens=1024,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )
    return ModelPlan(
        load=load,
        facts=FACTS,
        weights_bytes=1,
        kv_cache_bytes=1,
        workspace_bytes=1,
        context_bytes=1,
        bytes_by_device=bytes_by_device,
        sleeping_bytes_by_device=sleeping_bytes_by_device,
    )


@dataclass
class House:
    """A manager with fakes all around it. Sources equal names."""

    manager: ModelManager
    launcher: FakeLauncher
    machine: FakeMachine
    recorder: Recorder
    planned: dict[str, dict[str, int]]

    def state(self, name: str) -> ModelState:
        return self.manager.status(name).state

    def acquire(self, name: str, wait_s: float | None = None, **more: Any) -> Any:
        """`manager.acquire` with a relative deadline."""
        deadline_s = None if wait_s is None else asyncio.get_running_loop().time() + wait_s
        return self.manager.acquire(name, deadline_s=deadline_s, **more)

    async def use(self, name: str, hold_s: float = 0.0, wait_s: float | None = None) -> None:
        """One request: acquire, hold, release."""
        async with self.acquire(name, wait_s):
            await asyncio.sleep(hold_s)


def build_house(
    models: Mapping[str, int | Mapping[str, int]],
    *,
    budget: int | Mapping[str, int] = 30,
    launcher: FakeLauncher | None = None,
    free: Mapping[str, int] | None = None,
    asleep: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    settings: Settings | None = None,
    load_times: LoadTimes | None = None,
    **fields: Mapping[str, Any],
) -> House:
    """`fields` are per-model ModelSpec fields: `a={"pinned": True}`. Call it inside a running loop.

    Models that are in `asleep` (bytes per device) can sleep if the launcher's workers can. Unless `settings`
    say otherwise, a model may leave as soon as it is idle, and nobody in use has to make way.
    """
    budgets = {"cpu": budget} if isinstance(budget, int) else dict(budget)
    specs = {name: ModelSpec(name=name, source=name, **fields.get(name, {})) for name in models}
    memory = MemorySpec(host_bytes=budgets["cpu"], gpu_bytes=budgets.get("cuda:0"))
    machine = FakeMachine(dict(free or budgets))
    house_launcher = launcher or FakeLauncher()
    recorder = Recorder()
    planned: dict[str, dict[str, int]] = {}
    manager = ModelManager(
        Catalog(models=specs, memory=memory),
        settings or Settings(min_residency=0.0, max_swap_wait=1e6),
        house_launcher,
        observer=recorder,
        devices=machine.devices,
        planner=fake_planner(models, planned, asleep),
        clock=asyncio.get_running_loop().time,
        process_bytes=lambda pid: 0,
        load_times=load_times,
    )
    return House(manager, house_launcher, machine, recorder, planned)


def now_s() -> float:
    """The virtual loop's time."""
    return asyncio.get_running_loop().time()


def spawn(coroutine: Any) -> asyncio.Task[Any]:
    """Run it beside the test."""
    return asyncio.create_task(coroutine)
