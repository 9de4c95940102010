"""What to send and when: prompts and arrival times, both given by a seed. Pure; it knows no server."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_WORDS = (
    "river stone market window garden letter engine captain silver morning winter bridge number island "
    "teacher music coffee shadow forest machine story village doctor paper ocean yellow planet signal "
    "basket harbor"
)
_INSTRUCTION = "Write a long story using these words: "
_NUM_OVERHEAD_TOKENS = 25  # the instruction and a usual chat template
_NUM_LABEL_TOKENS = 10
_TOKENS_PER_WORD = 1.25


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts[i]` is sent `arrivals_s[i]` seconds after the start, or as soon after as a place is free."""

    prompts: tuple[str, ...]
    arrivals_s: tuple[float, ...]


def make_workload(
    num_prompts: int, *, input_len: int, request_rate: float, burstiness: float, seed: int, label: str
) -> Workload:
    """Prompts of about `input_len` tokens, `request_rate` per second (infinite: all at once).

    Give each run a label of its own: equal prompts would come from the server's prefix cache.
    """
    rng = random.Random(seed)
    prompts = tuple(make_prompt(f"{label}.{index}", input_len, rng) for index in range(num_prompts))
    return Workload(prompts, make_arrivals(num_prompts, request_rate, burstiness, rng))


def make_prompt(label: str, input_len: int, rng: random.Random) -> str:
    """One prompt of about `input_len` tokens. The label comes first, so that no two share a cached prefix."""
    num_words = max(1, round((input_len - _NUM_OVERHEAD_TOKENS) / _TOKENS_PER_WORD))
    return f"[{label}] {_INSTRUCTION}{' '.join(rng.choices(_WORDS.split(), k=num_words))}"


def make_prefix(label: str, prefix_len: int, rng: random.Random) -> str:
    """A system prompt of about `prefix_len` tokens; empty for 0. The label comes first here, too."""
    num_words = round((prefix_len - _NUM_LABEL_TOKENS) / _TOKENS_PER_WORD)
    if prefix_len == 0:
        return ""
    return f"[{label}] {' '.join(rng.choices(_WORDS.split(), k=max(1, num_words)))}"


def make_arrivals(
    num_prompts: int, request_rate: float, burstiness: float, rng: random.Random
) -> tuple[float, ...]:
    """Seconds from the start, ascending; the first is 0.

    The gaps follow a gamma distribution of shape `burstiness` and mean 1 / `request_rate`: Poisson arrivals
    at 1, bursts below, an even flow far above.
    """
    if math.isinf(request_rate):
        return (0.0,) * num_prompts
    arrivals_s = [0.0]
    while len(arrivals_s) < num_prompts:
        gap_s = rng.gammavariate(burstiness, 1.0 / (request_rate * burstiness))
        arrivals_s.append(arrivals_s[-1] + gap_s)
    return tuple(arrivals_s)
