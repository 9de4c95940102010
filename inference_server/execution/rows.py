"""Which rows of a step are sampled, what stands before each, and which of the results count.

A sequence that samples has one row, or with drafts one more for each draft: the row of its last own token
and the rows of the drafts. After all of these come the rows that give scores of prompts. Pure; knows no
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from operator import attrgetter

import msgspec

from inference_server.scheduling.batch import INVALID_TOKEN, Batch, ScheduledSequence
from inference_server.scheduling.sequence import Sequence
from inference_server.types import GenerationRequest, SamplingParams


class SampleRow(msgspec.Struct, frozen=True, gc=False):
    """One token to choose: the one at `position` of `sequence`.

    Before it stand the sequence's own tokens, then `drafts`; with `carries` one token more, which the step
    before is still choosing.
    """

    sequence: Sequence
    position: int
    drafts: tuple[int, ...] = ()
    carries: bool = False

    @property
    def num_output_tokens(self) -> int:
        """Output tokens before this one."""
        return self.position - self.sequence.num_prompt_tokens


def new_tokens(item: ScheduledSequence) -> list[int]:
    """The tokens that a step computes for this sequence; 0 stands for one that is not known yet.

    Raises:
        ValueError: the tokens do not add up, or drafts follow a token that is not known yet.
    """
    drafts = item.draft_token_ids
    if item.carries:
        if drafts or item.num_new_tokens != 1:
            raise ValueError("a sequence whose last token is not known yet takes exactly one more")
        return [0]
    end = item.start + item.num_new_tokens - len(drafts)
    tokens = [*item.sequence.token_ids[item.start : end], *drafts]
    if len(tokens) != item.num_new_tokens:
        raise ValueError(f"{item.num_new_tokens} tokens were scheduled and there are {len(tokens)}")
    return tokens


def sample_rows(batch: Batch) -> list[SampleRow]:
    """All tokens that a step chooses: for each entry of `batch.sampling`, in order, its 1 + drafts rows."""
    rows: list[SampleRow] = []
    for item in batch.sampling:
        drafts = item.draft_token_ids
        first = item.start + item.num_new_tokens - len(drafts)
        if not drafts:
            rows.append(SampleRow(item.sequence, first, (), item.carries))
        else:
            rows += [SampleRow(item.sequence, first + n, drafts[:n]) for n in range(len(drafts) + 1)]
    return rows


_is_plain = attrgetter("sequence.is_plain")


def all_plain(rows: Seq[SampleRow]) -> bool:
    """Whether every row's token is its largest logit's, and nothing else is asked for."""
    return all(map(_is_plain, rows))


def accepted_tokens(batch: Batch, sampled: Seq[int]) -> list[tuple[int, ...]]:
    """From one token per row to the new tokens of each entry of `batch.sampling`.

    A draft counts while it equals what was sampled in its place; the first that does not is replaced by the
    sampled token, and all after it are void. So the result is what plain decoding would have given.
    """
    results: list[tuple[int, ...]] = []
    row = 0
    for item in batch.sampling:
        drafts = item.draft_token_ids
        results.append(_accepted(drafts, sampled[row : row + len(drafts) + 1]))
        row += len(drafts) + 1
    if row != len(sampled):
        raise ValueError(f"{len(sampled)} tokens for {row} rows")
    return results


def _accepted(drafts: Seq[int], sampled: Seq[int]) -> tuple[int, ...]:
    count = 0
    while count < len(drafts) and drafts[count] == sampled[count]:
        count += 1
    tokens = tuple(sampled[: count + 1])
    if tokens[-1] == INVALID_TOKEN and count:
        return tokens[:-1]  # what came before it stands; the next step meets the damage again
    return tokens


def lone_prompt(token_ids: Seq[int], block_size: int) -> ScheduledSequence:
    """A text as one step's only work, in the first blocks of the KV cache; for tests and measurements."""
    request = GenerationRequest(
        request_id="prompt", prompt_token_ids=tuple(token_ids), sampling=SamplingParams(max_tokens=1)
    )
    sequence = Sequence(request, arrival=0, max_num_tokens=len(token_ids) + 1)
    sequence.block_ids = list(range(-(-len(token_ids) // block_size)))
    return ScheduledSequence(sequence, 0, len(token_ids), samples=True)
