"""Chooses the next token of each row from its logits.

A row's choice depends on its own logits, its seed and its position: never on its neighbours. One uniform
number per token, drawn from a counter-based generator, picks from the cumulative distribution. What the
host knows is planned first, so that the device part waits for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from inference_server.execution import logits as filters
from inference_server.execution.masks import MaskPlan, plan_masks
from inference_server.execution.penalties import PenaltyPlan, plan_penalties
from inference_server.execution.rows import SampleRow, all_plain
from inference_server.execution.upload import Floats, Ints
from inference_server.scheduling.batch import INVALID_TOKEN
from inference_server.scheduling.sequence import Sequence

_MASK64 = (1 << 64) - 1
_BLOCK = 256  # tokens per partial sum
_NUM_COLUMNS = 5  # temperature, min_p, top_p, top_k, point


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that `seed` gives at `position` (SplitMix64, doi:10.1145/2660193.2660195)."""
    state = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK64
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        state = mixed ^ (mixed >> 31)
    return (state >> 11) / float(1 << 53)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What the host knows about the choice of one step's tokens. Empty parts cost the device nothing."""

    num_rows: int
    penalties: PenaltyPlan
    masks: MaskPlan = MaskPlan()  # noqa: RUF009 - frozen
    random_rows: tuple[int, ...] = ()
    columns: tuple[float, ...] = ()  # `_NUM_COLUMNS` × one number per random row
    any_min_p: bool = False
    largest_top_k: int = 0
    any_top_p: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether every row simply takes its largest logit, as the model gave it."""
        return not self.random_rows and not self.penalties and not self.masks

    def ints(self) -> Ints:
        """Whole numbers that `Sampler.choose` needs on the device."""
        numbers: Ints = np.array([*self.random_rows, *self.penalties.ints()], dtype=np.int32)
        return np.concatenate([self.masks.ints(), numbers]) if self.masks else numbers

    def floats(self) -> Floats:
        """Other numbers that `Sampler.choose` needs on the device."""
        return np.array([*self.columns, *self.penalties.floats()], dtype=np.float64)


class Sampler:
    """Greedy and random choice for a whole batch. `eos_token_ids` are what `min_tokens` holds back."""

    def __init__(
        self, eos_token_ids: Seq[int], salt: bytes, nucleus: filters.NucleusFilter = filters.keep_top_p
    ) -> None:
        """`salt` seeds the requests that bring no seed; draw it fresh per worker."""
        self._eos_token_ids = tuple(eos_token_ids)
        self._salt = salt
        self._nucleus = nucleus
        self._plain = SamplingPlan(num_rows=0, penalties=PenaltyPlan())

    def sample(self, logits: torch.Tensor, rows: Seq[SampleRow]) -> list[int]:
        """One token per row of logits [num_rows, vocab_size]; `INVALID_TOKEN` where they are not finite.

        Waits for the result. For rows that carry nothing.
        """
        if not rows:
            return []
        plan = self.plan(rows, logits.shape[1])
        if plan.is_greedy and logits.dtype == torch.float32 and logits.device.type == "cpu":
            return _greedy(logits.numpy())
        ints = torch.from_numpy(plan.ints()).to(logits.device)
        floats = torch.from_numpy(plan.floats()).to(logits.device)
        last_tokens = ints.new_zeros(len(rows))  # read for carried rows only
        return self.choose(logits, plan, ints, floats, last_tokens).tolist()

    def plan(self, rows: Seq[SampleRow], vocab_size: int) -> SamplingPlan:
        """What can be said of the choice before the logits are there."""
        if all_plain(rows):
            return self._plain
        random_rows = [n for n, row in enumerate(rows) if row.sequence.sampling.temperature > 0]
        settings = [rows[number].sequence.sampling for number in random_rows]
        return SamplingPlan(
            num_rows=len(rows),
            penalties=plan_penalties(rows, self._eos_token_ids, vocab_size),
            masks=plan_masks(rows, vocab_size),
            random_rows=tuple(random_rows),
            columns=(
                *(s.temperature for s in settings),
                *(s.min_p for s in settings),
                *(s.top_p for s in settings),
                *(float(s.top_k) for s in settings),
                *(uniform(self._seed(rows[n].sequence), rows[n].position) for n in random_rows),
            ),
            any_min_p=any(s.min_p > 0 for s in settings),
            largest_top_k=max((s.top_k for s in settings), default=0),
            any_top_p=any(s.top_p < 1 for s in settings),
        )

    def choose(
        self,
        logits: torch.Tensor,
        plan: SamplingPlan,
        ints: torch.Tensor,
        floats: torch.Tensor,
        last_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """The token of each row → [num_rows] int64; `INVALID_TOKEN` where its logits are not finite.

        logits [num_rows, vocab_size] are not changed. ints, floats: the plan's numbers on the device.
        last_tokens [num_rows]: the token that each row was computed from.
        """
        finite = logits.amax(dim=-1).isfinite()
        num_random = len(plan.random_rows)
        if plan.penalties or plan.masks:
            logits = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if plan.masks:
            num_masks = len(plan.masks.rows) + plan.masks.words.size
            masks, ints = ints[:num_masks], ints[num_masks:]
        if plan.penalties:
            amounts = floats[_NUM_COLUMNS * num_random :]
            plan.penalties.apply(logits, ints[num_random:], amounts, last_tokens.clamp(min=0))
        if plan.masks:
            plan.masks.apply(logits, masks)
            finite &= logits.amax(dim=-1).isfinite()
        tokens = logits.argmax(dim=-1)
        if num_random:
            drawn = self._draw(logits, plan, ints[:num_random], floats[: _NUM_COLUMNS * num_random])
            tokens.index_copy_(0, ints[:num_random].long(), drawn)
        return torch.where(finite, tokens, INVALID_TOKEN)

    def _draw(
        self, logits: torch.Tensor, plan: SamplingPlan, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        temperature, min_p, top_p, top_k, points = columns.view(_NUM_COLUMNS, -1).unbind()
        chosen = logits if len(rows) == plan.num_rows else logits.index_select(0, rows)
        scaled = chosen.float() / temperature.float().unsqueeze(-1)
        if plan.any_min_p:
            scaled = filters.keep_min_p(scaled, min_p.float())
        scaled = filters.keep_top_k(scaled, top_k.long(), plan.largest_top_k)
        if plan.any_top_p:
            scaled = self._nucleus(scaled, top_p.float())
        return _pick(scaled, points)

    def _seed(self, sequence: Sequence) -> int:
        if sequence.sampling.seed is not None:
            return sequence.sampling.seed
        digest = hashlib.blake2b(sequence.request_id.encode(), key=self._salt, digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _greedy(logits: npt.NDArray[np.float32]) -> list[int]:
    """The largest logit of each row; `INVALID_TOKEN` where they are not finite.

    Row by row: numpy then looks at each number once, in vectors, and takes a NaN for the largest. Torch's
    argmax takes ten times as long on one thread.
    """
    tokens = [int(row.argmax()) for row in logits]
    finite = np.isfinite(logits[np.arange(len(tokens)), tokens]).tolist()
    return [token if is_finite else INVALID_TOKEN for token, is_finite in zip(tokens, finite, strict=True)]


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
