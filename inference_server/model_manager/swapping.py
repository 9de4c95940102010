"""When models change places: the rules that keep a server from swapping all the time. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.config.settings import Settings
from inference_server.model_manager.eviction import EvictionPolicy


@dataclass(frozen=True, slots=True)
class SwapRules:
    """How long a model keeps its place, and how long others wait for one; seconds.

    With `collate`, whoever asks for a model that is in memory is served at once, ahead of those who wait
    for another model's turn; that other model gets it when a place is idle, and after `max_swap_wait_s`
    also though it is in use: its users then finish and no new ones are let in. A model that was just loaded
    keeps its place for `min_residency_s` in any case. Without `collate`, requests are served in the order
    in which they came, whatever that costs in swaps.
    """

    policy: EvictionPolicy = EvictionPolicy.COST
    collate: bool = True
    min_residency_s: float = 0.0
    max_swap_wait_s: float = 0.0


def rules_of(settings: Settings) -> SwapRules:
    """The rules that the settings describe."""
    return SwapRules(
        policy=EvictionPolicy(settings.eviction_policy),
        collate=settings.collate,
        min_residency_s=settings.min_residency if settings.collate else 0.0,
        max_swap_wait_s=settings.max_swap_wait if settings.collate else 0.0,
    )
