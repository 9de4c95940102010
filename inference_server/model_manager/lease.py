"""The right to use a loaded model: while one is open, the model is neither evicted nor unloaded."""

from __future__ import annotations

from collections.abc import Callable

from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.plan import ModelPlan
from inference_server.worker.handle import Worker


class Lease:
    """Covers one request from admission to its last byte. Get one from `ModelManager.acquire`.

    The worker may die under a lease; then its `generate` raises WorkerDied.
    """

    __slots__ = ("_on_release", "plan", "spec", "worker")

    def __init__(
        self, spec: ModelSpec, worker: Worker, plan: ModelPlan, on_release: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.worker = worker
        self.plan = plan
        self._on_release: Callable[[], None] | None = on_release

    @property
    def folder(self) -> str:
        """The prepared folder: tokenizer.json, chat template, config."""
        return self.plan.load.folder

    def release(self) -> None:
        """End the lease. Further calls do nothing."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()
