"""The files of models that need not be loaded, for whoever wants a tokenizer only. Owner: the event loop.

One job per model fetches them, whoever asks; a load that comes meanwhile waits for it at the cache's lock.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from inference_server import errors
from inference_server.config.settings import Settings
from inference_server.model_manager.arrival import as_unavailable, prepare_message
from inference_server.model_manager.cooldown import next_failure, remembered
from inference_server.model_manager.record import ModelRecord
from inference_server.worker.launcher import WorkerLauncher


class Files:
    """Prepared folders. `clock` gives monotonic seconds."""

    def __init__(self, launcher: WorkerLauncher, settings: Settings, clock: Callable[[], float]) -> None:
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._jobs: dict[str, asyncio.Task[str]] = {}

    async def folder(self, record: ModelRecord) -> str:
        """The model's prepared folder, fetched first if need be. Who leaves does not stop the fetch.

        Raises:
            ModelLoadFailed: they cannot be had, now or a short while ago.
        """
        if record.folder is not None:
            return record.folder
        name = record.spec.name
        job = self._jobs.get(name)
        if job is None:
            if record.failure is not None and record.failure.rest_s(self._clock()):
                raise remembered(record.failure, self._clock())
            job = self._jobs[name] = asyncio.create_task(self._fetch(record), name=f"fetch {name}")
            job.add_done_callback(functools.partial(self._ended, name))
        return await asyncio.shield(job)

    async def stop(self) -> None:
        """End every fetch."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def _ended(self, name: str, job: asyncio.Task[str]) -> None:
        del self._jobs[name]
        if not job.cancelled():
            job.exception()  # also if nobody waits for it any more

    async def _fetch(self, record: ModelRecord) -> str:
        try:
            message = prepare_message(record.spec, self._settings)
            prepared = await self._launcher.prepare(message, lambda progress: None)
        except errors.HelixFlowError as error:
            failed = as_unavailable(record.spec.name, error)
            record.failure = next_failure(failed, record.failure, self._clock(), cools_down=True)
            failed.retry_after_s = record.failure.cooldown_s
            raise failed from error
        record.folder = prepared.folder
        return prepared.folder
