"""Where grammars are worked on: short ones in one thread, long ones, which may take a second, in another.

So none waits long behind what others are given to chew on. Knows nothing of what is done with a grammar.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from inference_server.types import GrammarSpec

T = TypeVar("T")
SHORT_CHARS = 4096
_Task = tuple[Future[Any], Callable[[], Any]]


class GrammarLanes:
    """Two threads, started when they are needed. Tenants take turns in each. To be called from any thread."""

    def __init__(self) -> None:
        self._short, self._long = _Lane("grammar"), _Lane("long-grammar")

    def submit(self, spec: GrammarSpec, tenant: str, work: Callable[[GrammarSpec], T]) -> Future[T]:
        """What `work` makes of the grammar. Equal grammars never meet: they are in one lane."""
        lane = self._short if len(spec.text) <= SHORT_CHARS else self._long
        return lane.submit(tenant, lambda: work(spec))


class _Lane:
    """One thread, and what waits for it, by tenant; whose turn is next is first."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Task]] = OrderedDict()

    def submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append((future, work))
        self._thread.submit(self._do_next)
        return future

    def _do_next(self) -> None:
        future, work = self._next()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    def _next(self) -> _Task:
        with self._lock:
            tenant, tasks = self._waiting.popitem(last=False)
            task = tasks.popleft()
            if tasks:
                self._waiting[tenant] = tasks
            return task
