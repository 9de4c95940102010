"""Drives a load: starts requests at their times, no more than allowed at once. It knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from inference_server.bench.client import RequestRecord
from inference_server.bench.workload import Workload

Send = Callable[[str], Awaitable[RequestRecord]]


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """All records in the order of the workload, and what the load looked like."""

    records: tuple[RequestRecord, ...]
    duration_s: float
    max_concurrent: int


class LoadDriver:
    """One load. `max_concurrency` None is without limit; time runs by `clock` and `sleep`."""

    def __init__(
        self,
        send: Send,
        *,
        max_concurrency: int | None,
        on_done: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._send = send
        self._places = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._on_done = on_done
        self._clock = clock
        self._sleep = sleep
        self._num_running = 0
        self._max_concurrent = 0

    async def run(self, workload: Workload) -> LoadOutcome:
        """Send everything and wait for every answer."""
        start_s = self._clock()
        tasks: list[asyncio.Task[RequestRecord]] = []
        async with asyncio.TaskGroup() as group:
            for prompt, arrival_s in zip(workload.prompts, workload.arrivals_s, strict=True):
                wait_s = start_s + arrival_s - self._clock()
                if wait_s > 0:
                    await self._sleep(wait_s)
                if self._places is not None:
                    await self._places.acquire()
                tasks.append(group.create_task(self._one(prompt)))
        duration_s = self._clock() - start_s
        return LoadOutcome(tuple(task.result() for task in tasks), duration_s, self._max_concurrent)

    async def _one(self, prompt: str) -> RequestRecord:
        with self._counted():
            return await self._send(prompt)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._num_running += 1
        self._max_concurrent = max(self._max_concurrent, self._num_running)
        try:
            yield
        finally:
            self._num_running -= 1
            if self._places is not None:
                self._places.release()
            self._on_done()
