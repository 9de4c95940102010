"""Work on grammars: a slow one does not hold up quick ones, nor one tenant's the others'."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from inference_server.structured.lanes import SHORT_CHARS, GrammarLanes
from inference_server.types import GrammarSpec

SHORT = GrammarSpec("regex", "a", "guided_regex")
LONG = GrammarSpec("regex", "a" * (SHORT_CHARS + 1), "guided_regex")


class Gate:
    """Work that waits to be told."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, spec: GrammarSpec) -> str:
        assert self.opened.wait(30)
        return "waited"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_a_short_grammar_does_not_wait_for_long_ones(gate: Gate) -> None:
    lanes = GrammarLanes()
    slow = [lanes.submit(LONG, "", gate) for _ in range(3)]
    assert lanes.submit(SHORT, "", lambda spec: spec.text).result(30) == "a"
    assert not any(future.done() for future in slow)
    gate.opened.set()
    assert [future.result(30) for future in slow] == ["waited"] * 3


@pytest.mark.parametrize("spec", [SHORT, LONG], ids=["short", "long"])
def test_tenants_take_turns(gate: Gate, spec: GrammarSpec) -> None:
    lanes = GrammarLanes()
    running = lanes.submit(spec, "a", gate)
    done: list[str] = []
    names = ("a1", "a2", "a3", "b1", "c1", "b2")
    futures = [lanes.submit(spec, name[0], lambda _, name=name: done.append(name)) for name in names]
    gate.opened.set()
    running.result(30)
    for future in futures:
        future.result(30)
    # Whether the first has left the queue before the others came is chance.
    assert done in (["a1", "b1", "c1", "a2", "b2", "a3"], ["b1", "a1", "c1", "b2", "a2", "a3"])


def test_who_leaves_is_passed_over_and_who_fails_says_why(gate: Gate) -> None:
    lanes = GrammarLanes()
    running = lanes.submit(SHORT, "", gate)
    done: list[str] = []
    left = lanes.submit(SHORT, "", lambda spec: done.append("left"))
    wrong = lanes.submit(SHORT, "", lambda spec: [][0])
    after = lanes.submit(SHORT, "", lambda spec: done.append("after"))
    assert left.cancel()
    gate.opened.set()
    running.result(30)
    with pytest.raises(IndexError):
        wrong.result(30)
    after.result(30)
    assert done == ["after"]
