"""What the scheduler and the runner ask of whatever limits a sequence's next token. No grammar here."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol


class Constraint(Protocol):
    """Follows one sequence's output. A sequence under it takes a step only once its last token is known."""

    @property
    def error(self) -> str | None:
        """Why no token can be chosen any more, in words; None while one can."""

    def write_mask(self, output_token_ids: Seq[int], address: int, num_bytes: int) -> None:
        """Write which tokens may follow this output, a bit each, lowest first; all zero if there is an error.

        The output only ever grows from call to call.
        """
