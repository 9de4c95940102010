"""Log-probabilities that requests ask for: of the tokens chosen in a step, and of tokens of a prompt.

They are those of the model's raw distribution: the log-softmax of its logits, before penalties, temperature
and filters (what vLLM calls raw_logprobs). Only rows that somebody asked for are computed, and nothing here
waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from inference_server.execution.rows import SampleRow, all_plain
from inference_server.execution.upload import Ints
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import StepScores
from inference_server.types import TokenScore


@dataclass(frozen=True, slots=True)
class Share:
    """Consecutive scored rows of one request, and how many likeliest tokens it wants of each."""

    request_id: str
    num_rows: int
    num_top: int


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """Which rows of a step's logits are scored: sampled ones first, then rows of prompts.

    A sampled row's token is chosen in the same step; `prompt_tokens` are those of the others.
    """

    sampled_rows: tuple[int, ...]
    prompt_rows: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    outputs: tuple[Share, ...]
    prompts: tuple[Share, ...]

    @property
    def num_top(self) -> int:
        """The most likeliest tokens that anybody wants."""
        return max(share.num_top for share in (*self.outputs, *self.prompts))

    def ints(self) -> Ints:
        """Whole numbers that `score` needs on the device."""
        return np.array([*self.sampled_rows, *self.prompt_rows, *self.prompt_tokens], dtype=np.int32)


def plan_scores(batch: Batch, rows: Seq[SampleRow]) -> ScorePlan | None:
    """What is to be scored of a step that samples `rows`; None if nothing is, which is found out fast."""
    scored = [item for item in batch.scheduled if item.scored]
    if not scored and all_plain(rows):
        return None
    sampled_rows = [n for n, row in enumerate(rows) if row.sequence.sampling.logprobs is not None]
    if not scored and not sampled_rows:
        return None
    prompt_tokens = [item.sequence.token_ids[position] for item in scored for position in item.scored]
    return ScorePlan(
        sampled_rows=tuple(sampled_rows),
        prompt_rows=tuple(range(len(rows), len(rows) + len(prompt_tokens))),
        prompt_tokens=tuple(prompt_tokens),
        outputs=tuple(
            Share(item.sequence.request_id, 1 + len(item.draft_token_ids), item.sequence.sampling.logprobs)
            for item in batch.sampling
            if item.sequence.sampling.logprobs is not None
        ),
        prompts=tuple(
            Share(item.sequence.request_id, len(item.scored), item.sequence.sampling.prompt_logprobs or 0)
            for item in scored
        ),
    )


def score(logits: torch.Tensor, plan: ScorePlan, ints: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Everything that `read_scores` needs, in one tensor → [num_scored, 2 + 2 * num_top] float64.

    logits [num_rows, vocab_size]: as the model gave them. ints: the plan's numbers on the device. tokens:
    what was chosen for each sampled row. Columns: log-probability, rank, likeliest ids, their
    log-probabilities.
    """
    num_sampled, num_prompt = len(plan.sampled_rows), len(plan.prompt_rows)
    rows, prompt_tokens = torch.split(ints.long(), [num_sampled + num_prompt, num_prompt])
    wanted = torch.cat([tokens[rows[:num_sampled]].long(), prompt_tokens]).clamp(min=0).unsqueeze(-1)
    raw = logits.index_select(0, rows).float()
    total = raw.logsumexp(dim=-1, keepdim=True)
    own = raw.gather(-1, wanted)
    rank = (raw > own).sum(dim=-1, keepdim=True) + 1
    top = raw.topk(min(plan.num_top, raw.shape[-1]), dim=-1)
    parts = [own - total, rank, top.indices, top.values - total]
    return torch.cat([part.double() for part in parts], dim=-1)


def read_scores(plan: ScorePlan, numbers: Seq[Seq[float]]) -> StepScores:
    """From the rows of `score` to what each request asked for."""
    scores = iter(numbers)
    outputs = {share.request_id: _take(share, scores) for share in plan.outputs}
    return StepScores(outputs, {share.request_id: _take(share, scores) for share in plan.prompts})


def _take(share: Share, numbers: Iterator[Seq[float]]) -> list[TokenScore]:
    return [_token_score(next(numbers), share.num_top) for _ in range(share.num_rows)]


def _token_score(row: Seq[float], num_top: int) -> TokenScore:
    most = (len(row) - 2) // 2
    ids, logprobs = row[2 : 2 + min(num_top, most)], row[2 + most :]
    top = tuple([(int(token), value) for token, value in zip(ids, logprobs, strict=False)])
    return TokenScore(row[0], int(row[1]), top)
