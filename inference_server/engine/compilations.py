"""Requests that wait for their grammar before they are scheduled; others go on meanwhile."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from inference_server.errors import UnsupportedParameter
from inference_server.scheduling.constraint import Constraint
from inference_server.types import GenerationRequest, GrammarSpec

LONGEST_WAIT_S = 0.02  # the engine has messages to read


class GrammarCompiler(Protocol):
    """Makes constraints beside the engine's loop."""

    def constrain(self, spec: GrammarSpec, tenant: str) -> Future[Constraint]:
        """What follows one answer of this tenant's through a grammar. The future raises InvalidRequest."""


class Compilations:
    """Requests with the futures of their constraints, in order of arrival. Owner: the engine."""

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[GenerationRequest, Future[Constraint]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def begin(self, request: GenerationRequest, spec: GrammarSpec) -> None:
        """Compile for a request.

        Raises:
            UnsupportedParameter: nothing here compiles grammars.
        """
        if self._compiler is None:
            raise UnsupportedParameter(f"{spec.param}: this model does not take grammars", param=spec.param)
        self._waiting[request.request_id] = (request, self._compiler.constrain(spec, request.tenant))

    def forget(self, request_id: str) -> bool:
        """Whether the request waited here; it does not any more."""
        found = self._waiting.pop(request_id, None)
        if found is None:
            return False
        found[1].cancel()
        return True

    def take(self, *, waits: bool) -> list[tuple[GenerationRequest, Future[Constraint]]]:
        """Those whose futures are done. With `waits`, a short while is spent until one is."""
        if waits:
            futures = [future for _, future in self._waiting.values()]
            wait(futures, timeout=LONGEST_WAIT_S, return_when=FIRST_COMPLETED)
        done = [entry for entry in self._waiting.values() if entry[1].done()]
        for request, _ in done:
            del self._waiting[request.request_id]
        return done
