"""A launcher that remembers what the workers it launched were seen to need. Starts nothing itself."""

from __future__ import annotations

import asyncio

from inference_server.errors import FetchFailed
from inference_server.model_manager.overheads import OverheadStore, overhead_key
from inference_server.worker.handle import Worker
from inference_server.worker.launcher import ProgressCallback, WorkerLauncher
from inference_server.worker.protocol import Load, Prepare, Prepared


class LearningLauncher:
    """A `WorkerLauncher` around another: what a worker measured goes to `overheads`, for the next plan."""

    def __init__(self, launcher: WorkerLauncher, overheads: OverheadStore) -> None:
        self._launcher = launcher
        self._overheads = overheads

    async def prepare(self, message: Prepare, on_progress: ProgressCallback) -> Prepared:
        """See `WorkerLauncher.prepare`."""
        return await self._launcher.prepare(message, on_progress)

    async def launch(self, message: Load, on_progress: ProgressCallback) -> Worker:
        """See `WorkerLauncher.launch`."""
        worker = await self._launcher.launch(message, on_progress)
        if worker.ready.memory.overhead is not None:
            # Not awaited: a cancellation between the start and the return would lose the worker.
            asyncio.get_running_loop().run_in_executor(None, self._remember, message, worker)
        return worker

    def _remember(self, message: Load, worker: Worker) -> None:
        overhead = worker.ready.memory.overhead
        if overhead is None:
            return
        try:
            self._overheads.remember(overhead_key(message), overhead)
        except FetchFailed:
            return  # the folder is gone; the next load says so
