"""What a client is told while its model is not ready yet."""

from __future__ import annotations

from inference_server.worker.protocol import Progress

WAITING = "waiting for the model"
_WORDS = {
    "download": "downloading",
    "convert": "converting",
    "memory": "finding memory for",
    "load": "loading",
    "check": "checking",
    "warm-up": "warming up",
    "measure": "measuring",
}


def loading_status(progress: Progress) -> str:
    """E.g. "loading model … 43%"."""
    percent = "" if progress.fraction is None else f" {progress.fraction:.0%}"
    return f"{_WORDS.get(progress.stage, progress.stage)} model …{percent}"
