"""Brings the models marked `preload` up at start, one after the other, with retries.

Knows how to ask for a model, not how it is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from inference_server.errors import HelixFlowError

RETRY_DELAYS_S = (1.0, 5.0)  # one retry after each
logger = logging.getLogger(__name__)


class Preloader:
    """One run over `names`. `done` is set when it is over, however it went; `error` is why it failed.

    A name that is not `wanted` any more when its turn comes, or when its load fails, is passed over.
    """

    def __init__(
        self, names: Sequence[str], load: Callable[[str], Awaitable[None]], wanted: Callable[[str], bool]
    ) -> None:
        self.done = asyncio.Event()
        self.error: HelixFlowError | None = None
        self._names = tuple(names)
        self._load = load
        self._wanted = wanted
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; with nothing to load, it is over at once."""
        if not self._names:
            self.done.set()
        elif self._task is None:
            self._task = asyncio.create_task(self._run(), name="preload")

    async def stop(self) -> None:
        """Give up what has not been loaded yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.done.set()  # a task cancelled before its first step has not done so

    async def _run(self) -> None:
        try:
            for name in self._names:
                await self._load_with_retries(name)
        except HelixFlowError as error:
            self.error = error
            logger.error("preloading failed: %s", error.message)
        finally:
            self.done.set()

    async def _load_with_retries(self, name: str) -> None:
        for delay_s in (*RETRY_DELAYS_S, None):
            if not self._wanted(name):
                return
            try:
                await self._load(name)
            except HelixFlowError as error:
                if not self._wanted(name):
                    return
                if delay_s is None:
                    raise
                logger.warning("preloading %s failed, next try in %g s: %s", name, delay_s, error.message)
            else:
                return
            await asyncio.sleep(delay_s)
