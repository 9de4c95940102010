"""The files of models that need not be loaded, for whoever wants a tokenizer only. Owner: the event loop.

One job per model fetches them, whoever asks; a load that comes meanwhile waits for it at the cache's lock. A
reload may give the model another source: what is fetched for the old one is then no more the model's.
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
from inference_server.worker.protocol import Prepare

_Key = tuple[ModelRecord, Prepare]


class Files:
    """Prepared folders. `clock` gives monotonic seconds."""

    def __init__(self, launcher: WorkerLauncher, settings: Settings, clock: Callable[[], float]) -> None:
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._jobs: dict[_Key, asyncio.Task[str]] = {}

    async def folder(self, record: ModelRecord) -> str:
        """The model's prepared folder, fetched first if need be. Who leaves does not stop the fetch.

        Raises:
            ModelLoadFailed: they cannot be had, now or a short while ago.
            ShuttingDown: the server ends.
        """
        if record.folder is not None:
            return record.folder
        key = record, prepare_message(record.spec, self._settings)
        job = self._jobs.get(key)
        if job is None:
            if record.failure is not None and record.failure.rest_s(self._clock()):
                raise remembered(record.failure, self._clock())
            job = self._jobs[key] = asyncio.create_task(self._fetch(*key), name=f"fetch {record.spec.name}")
            job.add_done_callback(functools.partial(self._ended, key))
        await asyncio.wait({job})
        if job.cancelled():  # by `stop`; who asked has not been
            raise errors.ShuttingDown("the server is shutting down")
        return job.result()

    async def stop(self) -> None:
        """End every fetch."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def _ended(self, key: _Key, job: asyncio.Task[str]) -> None:
        del self._jobs[key]
        if not job.cancelled():
            job.exception()  # also if nobody waits for it any more

    async def _fetch(self, record: ModelRecord, message: Prepare) -> str:
        try:
            prepared = await self._launcher.prepare(message, lambda progress: None)
        except errors.HelixFlowError as error:
            failed = as_unavailable(record.spec.name, error)
            if self._is_current(record, message):
                record.failure = next_failure(failed, record.failure, self._clock(), cools_down=True)
                failed.retry_after_s = record.failure.cooldown_s
            raise failed from error
        if self._is_current(record, message):
            record.folder = prepared.folder
        return prepared.folder

    def _is_current(self, record: ModelRecord, message: Prepare) -> bool:
        """Whether the model's entry still asks for these files."""
        return prepare_message(record.spec, self._settings) == message
