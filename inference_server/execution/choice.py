"""The end of a step on a device that computes while the host waits: logits → tokens and scores."""

from __future__ import annotations

import torch

from inference_server.execution.rows import accepted_tokens, sample_rows
from inference_server.execution.sampler import Sampler
from inference_server.execution.scoring import plan_scores, read_scores, score
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import FinishedStep


def finish_step(batch: Batch, logits: torch.Tensor, sampler: Sampler) -> FinishedStep:
    """Choose and score. logits: a row for each of `rows.sample_rows`, then one for each scored token."""
    rows = sample_rows(batch)
    sampled = sampler.sample(logits[: len(rows)], rows)
    accepted = accepted_tokens(batch, sampled)
    plan = plan_scores(batch, rows)
    if plan is None:
        return FinishedStep(accepted)
    ints = torch.from_numpy(plan.ints()).to(logits.device)
    tokens = torch.tensor(sampled, dtype=torch.int64, device=logits.device)
    return FinishedStep(accepted, read_scores(plan, score(logits, plan, ints, tokens).tolist()))
