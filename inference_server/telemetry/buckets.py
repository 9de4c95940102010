"""The bounds of every histogram, in seconds or tokens. vLLM's where the thing is the same."""

from __future__ import annotations

TTFT_BUCKETS = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
ITL_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5)  # fmt: skip
LATENCY_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)  # fmt: skip
# A wake can take milliseconds, the load of a checkpoint that has to be fetched half an hour.
LOAD_BUCKETS = (.05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800)  # fmt: skip
HTTP_BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # fmt: skip
TOKEN_BUCKETS = tuple(float(1 << power) for power in range(16))
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
