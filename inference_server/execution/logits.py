"""Which tokens stay in the running: top-k, nucleus (top-p) and min-p.

Pure functions on [num_rows, vocab_size] float32 logits. Rows are independent of each other. None of them
waits for the device, `keep_top_p` excepted.
"""

from __future__ import annotations

from typing import Protocol

import torch

_NUCLEUS_GUESS = 1024  # candidates tried before the whole vocabulary is sorted


class NucleusFilter(Protocol):
    """Keeps each row's smallest set of tokens whose probability reaches `top_p`."""

    def __call__(self, logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
        """logits [num_rows, vocab_size], top_p [num_rows] → logits with -inf where a token is out."""


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor, largest: int) -> torch.Tensor:
    """Keep each row's `top_k` largest logits (0: all; ties with the last kept stay). top_k [num_rows].

    `largest` is the largest entry of `top_k`, which the caller knows without asking the device.
    """
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
    enough: to know that, it waits for the device.
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
    threshold = logits.amax(dim=-1, keepdim=True) + min_p.clamp(min=1e-38).log().unsqueeze(-1)
    threshold = threshold.masked_fill((min_p <= 0).unsqueeze(-1), float("-inf"))
    return logits.masked_fill(logits < threshold, float("-inf"))
