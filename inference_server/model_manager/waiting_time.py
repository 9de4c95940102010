"""How long it may take until a model is ready, for Retry-After. Pure."""

from __future__ import annotations

from inference_server.model_manager.record import ModelRecord
from inference_server.model_manager.states import ModelState

MIN_RETRY_S = 1.0
MAX_RETRY_S = 600.0


def time_to_ready_s(record: ModelRecord, now_s: float, *, load_s: float, turn_s: float) -> float:
    """Seconds until a request for the model may find it ready, within 1 s to 10 minutes.

    `load_s` is what its load takes by measurement or estimate, `turn_s` what it may wait for its turn.
    """
    return min(MAX_RETRY_S, max(MIN_RETRY_S, _remaining_s(record, now_s, load_s=load_s, turn_s=turn_s)))


def _remaining_s(record: ModelRecord, now_s: float, *, load_s: float, turn_s: float) -> float:
    elapsed_s = now_s - record.state_since_s
    progress = record.progress
    match record.state:
        case ModelState.READY:
            return 0.0
        case ModelState.FETCHING:
            fraction = progress.fraction if progress is not None else None
            return load_s + (elapsed_s * (1 - fraction) / fraction if fraction else elapsed_s)
        case ModelState.LOADING if progress is not None and progress.stage == "memory":
            since_s = record.oldest_wait_s
            return load_s + max(0.0, turn_s - (now_s - since_s if since_s is not None else 0.0))
        case ModelState.LOADING:
            # a load that has overrun its time may last half as long again
            return load_s - elapsed_s if elapsed_s < load_s else elapsed_s / 2
        case _:
            rest_s = record.failure.rest_s(now_s) if record.failure is not None else 0.0
            return rest_s if rest_s > 0 else load_s
