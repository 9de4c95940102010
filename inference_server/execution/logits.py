"""What happens to logits before a token is chosen: penalties, forbidden tokens, temperature, top-k/p, min-p.

Pure functions on [num_rows, vocab_size] float32 logits. Rows are independent of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq

import torch

from inference_server.scheduling.sequence import Sequence

_NUCLEUS_GUESS = 1024  # candidates tried before the whole vocabulary is sorted


def needs_processing(sequence: Sequence) -> bool:
    """Whether penalties or a minimum length change this sequence's logits."""
    sampling = sequence.sampling
    return (
        sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or sampling.repetition_penalty != 1.0
        or sequence.num_output_tokens < sampling.min_tokens
    )


def process_row(row: torch.Tensor, sequence: Sequence, eos_token_ids: Seq[int]) -> None:
    """Apply penalties and forbid early ends, in place. row [vocab_size].

    Repetition penalty as in CTRL (arXiv:1909.05858), over prompt and output; presence and frequency
    penalties as OpenAI defines them, over the output.
    """
    sampling = sequence.sampling
    if sampling.repetition_penalty != 1.0:
        seen = _ids(set(sequence.token_ids), row)
        values = row[seen]
        penalty = sampling.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        counts = Counter(sequence.output_token_ids)
        if counts:
            ids = _ids(counts.keys(), row)
            times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
            row[ids] -= sampling.frequency_penalty * times + sampling.presence_penalty
    if sequence.num_output_tokens < sampling.min_tokens:
        ends = {*eos_token_ids, *sampling.stop_token_ids}
        row[_ids([token for token in ends if token < row.shape[0]], row)] = float("-inf")


def _ids(tokens: object, row: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=row.device)  # type: ignore[call-overload]


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Keep each row's `top_k` largest logits (0: all; ties with the last kept stay). top_k [num_rows]."""
    largest = int(top_k.max())
    if largest <= 0:
        return logits
    largest = min(largest, logits.shape[-1])
    values = logits.topk(largest, dim=-1).values  # sorted, descending
    last = (top_k.clamp(1, largest) - 1).unsqueeze(-1)
    threshold = values.gather(-1, last)
    threshold = threshold.masked_fill((top_k <= 0).unsqueeze(-1), float("-inf"))
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches `top_p` (nucleus, arXiv:1904.09751).

    top_p [num_rows], in (0, 1]. Sorts a short list of candidates first, all tokens only where that is not
    enough.
    """
    if bool((top_p >= 1).all()):
        return logits
    total = logits.logsumexp(dim=-1, keepdim=True)
    num_candidates = min(_NUCLEUS_GUESS, logits.shape[-1])
    values = logits.topk(num_candidates, dim=-1).values
    cumulative = (values - total).exp().cumsum(dim=-1)
    if num_candidates < logits.shape[-1] and bool((cumulative[:, -1] < top_p.clamp(max=1.0)).any()):
        values = logits.sort(dim=-1, descending=True).values
        cumulative = (values - total).exp().cumsum(dim=-1)
    before = cumulative - (values - total).exp()  # probability of everything likelier
    kept = before < top_p.unsqueeze(-1)
    kept[:, 0] = True
    threshold = values.masked_fill(~kept, float("inf")).amin(dim=-1, keepdim=True)
    threshold = threshold.masked_fill((top_p >= 1).unsqueeze(-1), float("-inf"))
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Drop tokens less likely than `min_p` times the likeliest (arXiv:2407.01082). min_p [num_rows]."""
    if bool((min_p <= 0).all()):
        return logits
    threshold = logits.amax(dim=-1, keepdim=True) + min_p.clamp(min=1e-38).log().unsqueeze(-1)
    threshold = threshold.masked_fill((min_p <= 0).unsqueeze(-1), float("-inf"))
    return logits.masked_fill(logits < threshold, float("-inf"))
