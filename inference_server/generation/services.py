"""The generation package as one thing: the door, and what runs behind it, over one model manager."""

from __future__ import annotations

import time
from dataclasses import dataclass

from inference_server.config.settings import Settings
from inference_server.generation.door import Door
from inference_server.generation.embeddings import EmbeddingService
from inference_server.generation.recorder import Clock
from inference_server.generation.service import GenerationService
from inference_server.generation.templates import Templates
from inference_server.generation.tokenization import Tokenization
from inference_server.model_manager.manager import ModelManager
from inference_server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """All of them share the door's limits and one cache of tokenizers."""

    door: Door
    text: GenerationService
    embeddings: EmbeddingService
    tokenization: Tokenization


def build_services(
    manager: ModelManager, settings: Settings, metrics: Metrics, *, clock: Clock = time.monotonic
) -> Services:
    """Services over a manager. `clock` gives monotonic seconds and must be the manager's."""
    door = Door(manager, settings, metrics, clock=clock)
    templates = Templates()
    return Services(
        door=door,
        text=GenerationService(door, templates),
        embeddings=EmbeddingService(door, templates, max_num_seqs=settings.max_num_seqs),
        tokenization=Tokenization(manager, templates, settings.request_timeout),
    )
