"""Chooses the next token of each sequence from its logits.

A row's choice depends on its own logits, its seed and its position: never on its neighbours. One uniform
number per token, drawn from a counter-based generator, picks from the cumulative distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq

import torch

from inference_server.execution import logits as processing
from inference_server.scheduling.batch import INVALID_TOKEN
from inference_server.scheduling.sequence import Sequence

_MASK64 = (1 << 64) - 1
_BLOCK = 256  # tokens per partial sum


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that `seed` gives at `position` (SplitMix64, doi:10.1145/2660193.2660195)."""
    state = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK64
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        state = mixed ^ (mixed >> 31)
    return (state >> 11) / float(1 << 53)


class Sampler:
    """Greedy and random choice for a whole batch. `eos_token_ids` are what `min_tokens` holds back."""

    def __init__(self, eos_token_ids: Seq[int], salt: bytes) -> None:
        """`salt` seeds the requests that bring no seed; draw it fresh per worker."""
        self._eos_token_ids = tuple(eos_token_ids)
        self._salt = salt

    def sample(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
        """One token per row of logits [num_rows, vocab_size]; `INVALID_TOKEN` where they are not finite."""
        if not sequences:
            return []
        logits = logits.float()
        finite = logits.amax(dim=-1).isfinite()
        for row, sequence in enumerate(sequences):
            if processing.needs_processing(sequence):
                processing.process_row(logits[row], sequence, self._eos_token_ids)
        tokens = logits.argmax(dim=-1)
        random_rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if random_rows:
            rows = torch.tensor(random_rows, device=logits.device)
            chosen = [sequences[row] for row in random_rows]
            tokens[rows] = self._draw(logits.index_select(0, rows), chosen)
        return torch.where(finite, tokens, INVALID_TOKEN).tolist()

    def _draw(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
        settings = [sequence.sampling for sequence in sequences]
        device = logits.device

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        scaled = logits / column([s.temperature for s in settings]).unsqueeze(-1)
        scaled = processing.keep_min_p(scaled, column([s.min_p for s in settings]))
        scaled = processing.keep_top_k(scaled, torch.tensor([s.top_k for s in settings], device=device))
        scaled = processing.keep_top_p(scaled, column([s.top_p for s in settings]))
        points = [uniform(self._seed(sequence), sequence.num_tokens) for sequence in sequences]
        return _pick(scaled, torch.tensor(points, dtype=torch.float64, device=device))

    def _seed(self, sequence: Sequence) -> int:
        if sequence.sampling.seed is not None:
            return sequence.sampling.seed
        digest = hashlib.blake2b(sequence.request_id.encode(), key=self._salt, digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _pick(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution passes each point in [0, 1).

    Two levels, sums of 256 tokens first, so that only one block per row is accumulated token by token.
    """
    num_rows, vocab_size = logits.shape
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    weights = torch.nn.functional.pad(weights, (0, -vocab_size % _BLOCK)).view(num_rows, -1, _BLOCK)
    totals = weights.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)  # [num_rows, num_blocks]
    total = totals[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not reach the end
    targets = torch.minimum(points * total, below).unsqueeze(-1)
    block = torch.searchsorted(totals, targets, right=True).clamp(max=totals.shape[-1] - 1)
    before = torch.where(block > 0, totals.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = weights[torch.arange(num_rows, device=logits.device), block.squeeze(-1)]
    cumulative = inside.double().cumsum(dim=-1)  # [num_rows, _BLOCK]
    offset = torch.searchsorted(cumulative, targets - before, right=True)
    # Rounding may point past the last token of the block that has any weight.
    last = (
        (inside > 0).double().mul(torch.arange(1, _BLOCK + 1, device=logits.device)).argmax(-1, keepdim=True)
    )
    offset = torch.minimum(offset, last)
    return (block * _BLOCK + offset).squeeze(-1)
