"""Penalties, biases, forbidden ends and allowed tokens, for all rows of a step at once.

The host says which token ids of which row change and by how much; the device changes them. Nothing here
waits for the device. Repetition penalty as in CTRL (arXiv:1909.05858), over prompt and output; presence and
frequency penalties as OpenAI defines them, over the output; then biases are added, as they are given; what is
forbidden, and what is not among the allowed tokens, is out whatever its logit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch

from inference_server.execution.rows import SampleRow


def needs_processing(row: SampleRow) -> bool:
    """Whether anything here changes this row's logits."""
    sampling = row.sequence.sampling
    return sampling.changes_logits or row.num_output_tokens < sampling.min_tokens


@dataclass(slots=True)
class PenaltyPlan:
    """(row, token id) pairs of one step, as plain numbers.

    `repeated` pairs take the repetition penalty, `counted` ones presence and frequency penalties, `biased`
    ones their bias; `ends` are forbidden; `allowed` are all that `limited_rows` may choose. `carried_*` name
    rows whose last token only the device knows.
    """

    repeated: list[tuple[int, int]] = field(default_factory=list)
    repetition: list[float] = field(default_factory=list)
    counted: list[tuple[int, int]] = field(default_factory=list)
    deduction: list[float] = field(default_factory=list)
    biased: list[tuple[int, int]] = field(default_factory=list)
    bias: list[float] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    allowed: list[tuple[int, int]] = field(default_factory=list)
    limited_rows: list[int] = field(default_factory=list)
    carried_repeated: list[int] = field(default_factory=list)
    carried_repetition: list[float] = field(default_factory=list)
    carried_counted: list[int] = field(default_factory=list)
    carried_frequency: list[float] = field(default_factory=list)
    carried_presence: list[float] = field(default_factory=list)

    def add(self, number: int, row: SampleRow, eos_token_ids: Seq[int], vocab_size: int) -> None:
        """Note what changes in row `number` of the logits."""
        sampling = row.sequence.sampling
        if sampling.repetition_penalty != 1.0:
            self._add_repetition(number, row, sampling.repetition_penalty)
        if sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0:
            self._add_counts(number, row, sampling.frequency_penalty, sampling.presence_penalty)
        if sampling.logit_bias:
            known = [(token, bias) for token, bias in sampling.logit_bias if token < vocab_size]
            self.biased += [(number, token) for token, _ in known]
            self.bias += [bias for _, bias in known]
        if row.num_output_tokens < sampling.min_tokens:
            ends = {*eos_token_ids, *sampling.stop_token_ids}
            self.ends += [(number, token) for token in ends if token < vocab_size]
        if sampling.allowed_token_ids:
            self.limited_rows.append(number)
            self.allowed += [(number, token) for token in sampling.allowed_token_ids if token < vocab_size]

    def _add_repetition(self, number: int, row: SampleRow, penalty: float) -> None:
        seen = {*row.sequence.token_ids, *row.drafts}
        self.repeated += [(number, token) for token in seen]
        self.repetition += [penalty] * len(seen)
        if row.carries:
            self.carried_repeated.append(number)
            self.carried_repetition.append(penalty)

    def _add_counts(self, number: int, row: SampleRow, frequency: float, presence: float) -> None:
        counts = Counter([*row.sequence.output_token_ids, *row.drafts])
        self.counted += [(number, token) for token in counts]
        self.deduction += [frequency * count + presence for count in counts.values()]
        if row.carries:
            self.carried_counted.append(number)
            self.carried_frequency.append(frequency)
            self.carried_presence.append(presence)

    def __bool__(self) -> bool:
        return bool(
            self.repeated
            or self.counted
            or self.biased
            or self.ends
            or self.limited_rows
            or self.carried_repeated
            or self.carried_counted
        )

    def ints(self) -> list[int]:
        """Rows and token ids, to be uploaded."""
        pairs = [*self.repeated, *self.counted, *self.biased, *self.ends, *self.allowed]
        return [
            *(row for row, _ in pairs),
            *(token for _, token in pairs),
            *self.carried_repeated,
            *self.carried_counted,
            *self.limited_rows,
        ]

    def floats(self) -> list[float]:
        """Amounts, to be uploaded."""
        return [
            *self.repetition,
            *self.carried_repetition,
            *self.deduction,
            *self.carried_frequency,
            *self.carried_presence,
            *self.bias,
        ]

    def apply(
        self, logits: torch.Tensor, ints: torch.Tensor, floats: torch.Tensor, last_tokens: torch.Tensor
    ) -> None:
        """Change `logits` [num_rows, vocab_size] float32, contiguous, in place.

        ints, floats: the uploaded numbers. last_tokens [num_rows]: the input token of each row.
        """
        sizes = [len(self.repeated), len(self.counted), len(self.biased), len(self.ends), len(self.allowed)]
        num_again, num_once_more = len(self.carried_repeated), len(self.carried_counted)
        rows, tokens, again, once_more, limited = torch.split(
            ints.long(), [sum(sizes), sum(sizes), num_again, num_once_more, len(self.limited_rows)]
        )
        factors, deduction, frequency, presence, bias = torch.split(
            floats.to(logits.dtype), [sizes[0] + num_again, sizes[1], num_once_more, num_once_more, sizes[2]]
        )
        width = logits.shape[1]
        flat = logits.view(-1)
        repeated, counted, biased, ends, allowed = torch.split(rows * width + tokens, sizes)
        if len(factors):
            _repeat(flat, torch.cat([repeated, again * width + last_tokens[again]]), factors)
        if sizes[1]:
            flat.index_add_(0, counted, -deduction)
        if num_once_more:
            places = once_more * width + last_tokens[once_more]
            known = (places[:, None] == counted[None, :]).any(dim=1)
            flat.index_add_(0, places, -(frequency + presence.masked_fill(known, 0.0)))
        if sizes[2]:
            flat.index_add_(0, biased, bias)
        if sizes[3]:
            flat.index_fill_(0, ends, float("-inf"))
        if len(limited):
            kept = flat[allowed]
            logits.index_fill_(0, limited, float("-inf"))
            flat.index_copy_(0, allowed, kept)


def _repeat(flat: torch.Tensor, places: torch.Tensor, factors: torch.Tensor) -> None:
    """A place that occurs twice (a carried token seen before) is penalized once: both write one value."""
    values = flat[places]
    flat.index_copy_(0, places, torch.where(values > 0, values / factors, values * factors))


def plan_penalties(rows: Iterable[SampleRow], eos_token_ids: Seq[int], vocab_size: int) -> PenaltyPlan:
    """What changes in the logits of these rows."""
    plan = PenaltyPlan()
    for number, row in enumerate(rows):
        if needs_processing(row):
            plan.add(number, row, eos_token_ids, vocab_size)
    return plan
