"""Captures a profile of a model that is in memory, one at a time. Owner: the event loop.

torch: what the model's worker computes, by torch's own profiler, as a trace for Perfetto. py-spy: where the
worker's Python is, sampled from outside, for speedscope. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference_server.errors import Conflict, InternalError, InvalidRequest
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.plan import is_scripted
from inference_server.model_manager.states import ModelState

MAX_SECONDS = 60
MAX_STEPS = 200  # of a torch profile: thousands of events each, which a worker keeps and a viewer must open
SAMPLES_PER_S = 100
ProfileKind = Literal["torch", "py-spy"]
_UNFIT = re.compile(r"[^\w.-]+", re.ASCII)  # for the name of a file


@dataclass(frozen=True, slots=True)
class Profile:
    """A captured file and the name under which a client may keep it."""

    path: Path
    name: str
    media_type: str


class Profiler:
    """Takes profiles of the manager's models. `py_spy`: the program; None: it is not installed."""

    def __init__(self, manager: ModelManager, py_spy: str | None) -> None:
        self._manager = manager
        self._py_spy = py_spy
        self._busy_with: str | None = None

    @asynccontextmanager
    async def captured(self, model: str, kind: ProfileKind, seconds: float) -> AsyncIterator[Profile]:
        """Profile a model (by name or alias) for `seconds`; the file is there for the length of the block.

        Requests go on meanwhile. Leaving early ends py-spy's; a worker whose torch records goes on for
        `seconds`, and another profile is refused meanwhile.

        Raises:
            UnknownModel: no such model.
            Conflict: it is not in memory, or a profile is being taken already.
            InvalidRequest: profiles of this kind cannot be had of it, or here.
            InternalError, WorkerDied: it went wrong.
        """
        name = self._manager.status(model).name
        self._refuse_unless_ready(name)
        self._refuse_kind(name, kind)
        with self._alone(name), tempfile.TemporaryDirectory(prefix="helixflow-profile-") as folder:
            async with self._manager.acquire(name) as lease:
                if kind == "torch":
                    path, media_type = Path(folder) / "torch.json.gz", "application/gzip"
                    await lease.worker.profile(str(path), seconds, MAX_STEPS)
                else:
                    path, media_type = Path(folder) / "py-spy.speedscope.json", "application/json"
                    await self._sample(lease.worker.pid, seconds, path)
            yield Profile(path, f"{_UNFIT.sub('-', name)}-{path.name}", media_type)

    def _refuse_unless_ready(self, name: str) -> None:
        state = self._manager.status(name).state
        if state != ModelState.READY:
            raise Conflict(f"{name!r} is {state}; load it first, then take its profile", param="model")

    def _refuse_kind(self, name: str, kind: ProfileKind) -> None:
        if kind == "torch" and is_scripted(self._manager.status(name).spec):
            raise InvalidRequest(f"kind: {name!r} is scripted and runs no torch; take py-spy", param="kind")
        if kind == "py-spy" and self._py_spy is None:
            raise InvalidRequest(
                "kind: py-spy is not installed on the server: pip install 'helixflow[profiling]'",
                param="kind",
            )

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        if self._busy_with is not None:
            raise Conflict(f"a profile of {self._busy_with!r} is being taken; wait until it is done")
        self._busy_with = name
        try:
            yield
        finally:
            self._busy_with = None

    async def _sample(self, pid: int, seconds: float, path: Path) -> None:
        """The process goes on while it is looked at: a pause of 10 ms per sample would be felt."""
        flags = ["--format", "speedscope", "--rate", str(SAMPLES_PER_S), "--nonblocking", "--threads"]
        flags += ["--duration", str(math.ceil(seconds)), "--output", str(path), "--pid", str(pid)]
        process = await asyncio.create_subprocess_exec(
            self._py_spy or "py-spy",
            "record",
            *flags,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise InternalError(f"py-spy failed: {_reason(said.decode(errors='replace'))}")


def find_py_spy() -> str | None:
    """py-spy beside this very Python, or on the PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _reason(said: str) -> str:
    """Why, in words of ours: what it says may hold paths."""
    if "ermission" in said:
        return (
            "it may not look at the model's process. Give the server the capability SYS_PTRACE "
            "(or set kernel.yama.ptrace_scope to 0), or take a torch profile, which needs neither"
        )
    return "it took no sample; was the model's process ended meanwhile?"
