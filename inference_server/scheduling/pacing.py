"""How much of long prompts a step may compute, so that those who are already being answered do not stall.

A step lasts about as long as its decodes alone (the quiet time), plus so much per prompt token. Both are
learnt from measured steps. While anything decodes, long prompts get as many tokens as keep the step within
`slowdown` times the quiet time, and at least a few. Short prompts are not paced: cutting them up would cost
their first token more than it gives others, and many of them at once are what a busy server is for.

Where a prompt token costs much more in a small piece than in a large one, even a few may take too long, and
ever smaller pieces would only make it worse: a long prompt is not stretched to more than about `MAX_STRETCH`
times what it takes alone. How much more is learnt where prompts begin: deeper in a prompt every token costs
more, in pieces of any size, because it attends to all before it.

If more wait for their prompts than decode, the allowance grows in proportion: then the waiting are the ones
to protect, and a large batch is worth more than an even stream.

It has no clock: durations come in as numbers. It knows no sequences.
"""

from __future__ import annotations

MAX_ASKED_BETWEEN_QUIET = 64
MAX_STRETCH = 4.0
SHALLOW = 512  # tokens before a piece, up to which attention is a small part of its cost
_FALL, _RISE = 0.5, 0.2  # weights of a new quiet time below, above the average
_MAX_RISE = 1.1  # one slow step must not make all others look fast
_COST_WEIGHT = 0.25  # of a new cost per token below the average
_NEED_FALL, _NEED_RISE = 0.5, 0.1  # what disturbs a step makes it longer: the short ones tell the truth
_RATE_WEIGHT = 0.05  # of a new rate of prompts alone below the best
_MIN_COST_S = 1e-9  # a step that was no slower than a quiet one still says nothing of free tokens


class _Quiet:
    """The quiet time of one range of batch sizes, and how often it was relied on since it was measured."""

    __slots__ = ("num_asked", "seconds")

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.num_asked = 0

    def observe(self, seconds: float) -> None:
        self.num_asked = 0
        before = self.seconds
        if before is None:
            self.seconds = seconds
        elif seconds < before:
            self.seconds = before + _FALL * (seconds - before)
        else:
            self.seconds = min(before * _MAX_RISE, before + _RISE * (seconds - before))


class PrefillPacer:
    """Learns what steps cost, and says how many tokens of long prompts the next one may take."""

    def __init__(self, *, slowdown: float, min_tokens: int, max_tokens: int) -> None:
        """`slowdown` 0: no limit, which is `max_tokens`. `min_tokens` is the least that is allowed."""
        self._slowdown = slowdown
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._quiet: dict[int, _Quiet] = {}  # by the bit length of the number of decodes
        self._token_seconds: float | None = None
        self._num_tried = 0  # prompt tokens in the last mixed step; it fades while none comes
        self._num_needed = 0.0  # tokens below which a prompt would be stretched too far
        self._alone_rate = 0.0  # tokens per second of prompts while nothing decodes

    @property
    def is_on(self) -> bool:
        """Whether there is any limit."""
        return self._slowdown > 0

    def observe(self, *, num_decodes: int, num_prompt_tokens: int, depth: int = 0, seconds: float) -> None:
        """A step with this work took so long; `depth` tokens lie before the prompt tokens."""
        if not num_prompt_tokens:
            self._num_tried //= 4
            self._quiet_of(num_decodes).observe(seconds)
        elif num_decodes:
            self._num_tried = num_prompt_tokens
            if depth <= SHALLOW:
                self._learn_need(num_prompt_tokens, seconds)
            quiet_s = self._quiet_of(num_decodes).seconds
            if quiet_s is not None and num_prompt_tokens >= self._min_tokens:
                self._learn_cost(max(_MIN_COST_S, (seconds - quiet_s) / num_prompt_tokens))
        else:
            self._learn_alone(num_prompt_tokens, seconds)

    def allowance(self, *, num_decodes: int, num_prefilling: int, may_rest: bool) -> int:
        """Tokens of long prompts for the next step.

        `num_prefilling` counts the sequences that have prompt tokens left to compute, started or not. 0 is
        given now and then, if the step may do without (`may_rest`): that measures the quiet time anew.
        """
        if not self.is_on or not num_decodes:
            return self._max_tokens
        quiet = self._quiet_of(num_decodes)
        is_due = quiet.num_asked % MAX_ASKED_BETWEEN_QUIET == 0
        is_due = is_due and (quiet.num_asked > 0 or quiet.seconds is None)
        quiet.num_asked += 1
        if is_due and may_rest:
            return 0
        if quiet.seconds is None or self._token_seconds is None:
            return self._min_tokens
        slowdown = self._slowdown * max(1.0, num_prefilling / num_decodes)
        predicted = int((slowdown - 1) * quiet.seconds / self._token_seconds)
        wanted = max(predicted, int(self._num_needed))
        return max(self._min_tokens, min(wanted, 2 * self._num_tried, self._max_tokens))

    def _quiet_of(self, num_decodes: int) -> _Quiet:
        return self._quiet.setdefault(num_decodes.bit_length(), _Quiet())

    def _learn_need(self, num_prompt_tokens: int, seconds: float) -> None:
        """x tokens take seconds + (x - num_prompt_tokens) / rate; solved for x / that = rate / stretch."""
        needed = (self._alone_rate * seconds - num_prompt_tokens) / (MAX_STRETCH - 1)
        weight = _NEED_FALL if needed < self._num_needed else _NEED_RISE
        self._num_needed += weight * (needed - self._num_needed)

    def _learn_alone(self, num_prompt_tokens: int, seconds: float) -> None:
        if self._token_seconds is None:
            self._learn_cost(max(_MIN_COST_S, seconds / num_prompt_tokens))
        rate = num_prompt_tokens / max(seconds, _MIN_COST_S)
        self._alone_rate = max(rate, self._alone_rate + _RATE_WEIGHT * (rate - self._alone_rate))

    def _learn_cost(self, token_seconds: float) -> None:
        """Upwards at once, downwards slowly: what is to be bounded are the slowest steps."""
        before = self._token_seconds
        if before is None or token_seconds >= before:
            self._token_seconds = token_seconds
        else:
            self._token_seconds = before + _COST_WEIGHT * (token_seconds - before)
