"""The transition table."""

from __future__ import annotations

import itertools

import pytest

from inference_server.errors import InternalError
from inference_server.model_manager.states import ModelState, check_transition

ALLOWED = {
    "unloaded fetching", "fetching loading", "fetching failed", "fetching unloaded", "loading ready",
    "loading failed", "loading unloaded", "loading sleeping", "ready draining", "ready unloaded",
    "draining unloaded", "draining sleeping", "sleeping loading", "sleeping draining", "sleeping unloaded",
    "failed fetching", "failed unloaded",
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), list(itertools.product(ModelState, repeat=2)))
def test_only_the_steps_of_the_table_are_possible(old: ModelState, new: ModelState) -> None:
    if f"{old} {new}" in ALLOWED:
        check_transition(old, new)
    else:
        with pytest.raises(InternalError, match=f"from {old} to {new}"):
            check_transition(old, new)
