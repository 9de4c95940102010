"""The states of a model and which may follow which. Pure; who moves a model and why is `lifecycle.py`."""

from __future__ import annotations

import enum

from inference_server.errors import InternalError


class ModelState(enum.StrEnum):
    """Where a configured model stands.

    from       to                                   because
    ---------  -----------------------------------  ----------------------------------------------------------
    UNLOADED   FETCHING                             somebody asks for it, or it is to be preloaded
    FETCHING   LOADING | FAILED | UNLOADED          files are there | they cannot be had | unloaded by request
    LOADING    READY | FAILED | UNLOADED            worker is ready | load failed | unloaded, or nobody waits
    READY      DRAINING | UNLOADED                  evicted or unloaded by request | its worker died
    DRAINING   UNLOADED                             leases are over and the worker process is gone
    FAILED     FETCHING | UNLOADED                  the next one asks for it | unloaded by request

    A LOADING model holds a reservation from the moment its bytes are granted; READY and DRAINING ones always
    do; the others never.
    """

    UNLOADED = "unloaded"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    FAILED = "failed"


_NEXT: dict[ModelState, frozenset[ModelState]] = {
    ModelState.UNLOADED: frozenset({ModelState.FETCHING}),
    ModelState.FETCHING: frozenset({ModelState.LOADING, ModelState.FAILED, ModelState.UNLOADED}),
    ModelState.LOADING: frozenset({ModelState.READY, ModelState.FAILED, ModelState.UNLOADED}),
    ModelState.READY: frozenset({ModelState.DRAINING, ModelState.UNLOADED}),
    ModelState.DRAINING: frozenset({ModelState.UNLOADED}),
    ModelState.FAILED: frozenset({ModelState.FETCHING, ModelState.UNLOADED}),
}


def check_transition(old: ModelState, new: ModelState) -> None:
    """Refuse a step that the table does not have.

    Raises:
        InternalError: a bug of ours.
    """
    if new not in _NEXT[old]:
        raise InternalError(f"a model cannot go from {old} to {new}")
