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
    LOADING    READY                                its worker is ready, or awake again
               FAILED | UNLOADED                    load failed | unloaded, or nobody waits
               SLEEPING                             there is no memory to wake in, or nobody waits
    READY      DRAINING | UNLOADED                  evicted, idle or unloaded by request | its worker died
    DRAINING   UNLOADED | SLEEPING                  leases are over and the process is gone | its weights are
    SLEEPING   LOADING | DRAINING | UNLOADED        somebody asks for it | evicted, unloaded | its worker died
    FAILED     FETCHING | UNLOADED                  the next one asks for it | unloaded by request

    A LOADING model holds a reservation from the moment its bytes are granted; READY, DRAINING and SLEEPING
    ones always do; the others never.
    """

    UNLOADED = "unloaded"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    FAILED = "failed"


_S = ModelState
_NEXT: dict[ModelState, frozenset[ModelState]] = {
    _S.UNLOADED: frozenset({_S.FETCHING}),
    _S.FETCHING: frozenset({_S.LOADING, _S.FAILED, _S.UNLOADED}),
    _S.LOADING: frozenset({_S.READY, _S.FAILED, _S.UNLOADED, _S.SLEEPING}),
    _S.READY: frozenset({_S.DRAINING, _S.UNLOADED}),
    _S.DRAINING: frozenset({_S.UNLOADED, _S.SLEEPING}),
    _S.SLEEPING: frozenset({_S.LOADING, _S.DRAINING, _S.UNLOADED}),
    _S.FAILED: frozenset({_S.FETCHING, _S.UNLOADED}),
}


def check_transition(old: ModelState, new: ModelState) -> None:
    """Refuse a step that the table does not have.

    Raises:
        InternalError: a bug of ours.
    """
    if new not in _NEXT[old]:
        raise InternalError(f"a model cannot go from {old} to {new}")
