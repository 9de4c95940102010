"""What a client is told while its model is not ready yet."""

from __future__ import annotations

from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.states import ModelState

_WORDS = {
    "download": "downloading",
    "convert": "converting",
    "load": "loading",
    "check": "checking",
    "warm-up": "warming up",
}


def loading_status(manager: ModelManager, model: str) -> str | None:
    """E.g. "loading model … 43%"; None once the model is ready."""
    status = manager.status(model)
    if status.state is ModelState.READY:
        return None
    if status.progress is None:
        return "waiting for the model"
    stage, fraction = status.progress
    percent = "" if fraction is None else f" {fraction:.0%}"
    return f"{_WORDS.get(stage, stage)} model …{percent}"
