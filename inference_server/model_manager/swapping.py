"""When models change places: the rules that keep a server from swapping all the time. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.config.settings import Settings
from inference_server.model_manager.eviction import EvictionPolicy

IDLE_SHARE = 0.25  # of the minimum residency: after so long without use nobody is expected any more


@dataclass(frozen=True, slots=True)
class SwapRules:
    """How long a model keeps its place, and how long others wait for one; seconds.

    With `collate`, whoever asks for a model that is in memory is served at once, ahead of those who wait
    for another model's turn; that other model gets it when a place is idle, and after `max_swap_wait_s`
    also though it is in use: its users then finish and no new ones are let in. A model that was just loaded
    keeps its place for `min_residency_s`, or until it has been idle for a quarter of that. Without
    `collate`, requests are served in the order in which they came, whatever that costs in swaps.
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


def protected_until_s(*, ready_s: float, last_used_s: float, is_used: bool, min_residency_s: float) -> float:
    """Until when a model keeps its place that was ready at `ready_s`; all in seconds."""
    end_s = ready_s + min_residency_s
    return end_s if is_used else min(end_s, last_used_s + IDLE_SHARE * min_residency_s)
