"""Sequences that wait, by tenant: whose turn it is next. A virtual token counter per tenant decides.

A tenant (the key behind a request) has been served so many tokens: those of its prompts, and twice those of
its answers, which cost about that. The next to start is the first in rank of the tenant that has been served
least. Who comes back after a pause starts no lower than the least served of those that are there: a pause
earns no credit. Priorities order a tenant's own sequences only. With one tenant all is by rank.

Pure: no clock, no blocks. Owner: the scheduler. After Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from inference_server.scheduling.ranking import RankedSequences, by_rank
from inference_server.scheduling.sequence import Sequence

_ANSWER_WEIGHT = 2


class _Tenant:
    """What one tenant waits for, and what it has had. `num_present` counts its unfinished sequences."""

    __slots__ = ("num_present", "served", "waiting")

    def __init__(self) -> None:
        self.waiting = RankedSequences(by_rank)
        self.served = 0
        self.num_present = 0


class FairQueue:
    """The waiting sequences. `join` and `leave` bracket a sequence's life, `add` and `remove` each wait."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._num_present = 0

    def __len__(self) -> int:
        return sum([len(tenant.waiting) for tenant in self._tenants.values()])

    def __iter__(self) -> Iterator[Sequence]:
        """In no order that matters."""
        return chain.from_iterable(tenant.waiting for tenant in self._tenants.values())

    def served(self, name: str) -> int:
        """Tokens that a tenant has been served since all were last away, by weight."""
        tenant = self._tenants.get(name)
        return 0 if tenant is None else tenant.served

    def join(self, sequence: Sequence) -> None:
        """A sequence is new here."""
        tenant = self._tenants.setdefault(sequence.request.tenant, _Tenant())
        if not tenant.num_present and self._num_present:
            least = min(other.served for other in self._tenants.values() if other.num_present)
            tenant.served = max(tenant.served, least)
        tenant.num_present += 1
        self._num_present += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence that had joined has come to its end. When all have, nobody owes anything."""
        self._tenants[sequence.request.tenant].num_present -= 1
        self._num_present -= 1
        if not self._num_present:
            self._tenants.clear()

    def add(self, sequence: Sequence) -> None:
        """It waits for its turn."""
        self._tenants[sequence.request.tenant].waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It waits no longer. Raises InternalError if it did not."""
        self._tenants[sequence.request.tenant].waiting.remove(sequence)

    def next(self, num_passed_over: dict[str, int]) -> Sequence | None:
        """Whose turn it is; None if nobody is left. So many of each tenant's first are passed over."""
        turn: tuple[int, tuple[int, int]] | None = None
        chosen: Sequence | None = None
        for name, tenant in self._tenants.items():
            index = num_passed_over.get(name, 0)
            if index < len(tenant.waiting):
                sequence = tenant.waiting[index]
                its_turn = (tenant.served, sequence.rank)
                if turn is None or its_turn < turn:
                    turn, chosen = its_turn, sequence
        return chosen

    def charge_prompt(self, sequence: Sequence, num_tokens: int) -> None:
        """So many tokens of a prompt are computed for it."""
        self._tenants[sequence.request.tenant].served += num_tokens

    def charge_answer(self, sequence: Sequence, num_tokens: int) -> None:
        """It has come to so many more tokens."""
        self._tenants[sequence.request.tenant].served += _ANSWER_WEIGHT * num_tokens

    def is_sorted(self) -> bool:
        """For integrity checks."""
        return all(tenant.waiting.is_sorted() for tenant in self._tenants.values())
