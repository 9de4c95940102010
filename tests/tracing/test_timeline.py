"""What is written down of a request adds up, and its account says no more than it may."""

from __future__ import annotations

import itertools
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from inference_server.tracing.account import RequestAccount, headline, log_fields
from inference_server.tracing.context import TraceContext
from inference_server.tracing.timeline import CANCELLED, PhaseName, Timeline

NAMES = st.sampled_from(get_args(PhaseName))


def account(timeline: Timeline, status: int = 200) -> RequestAccount:
    return RequestAccount(
        request_id="req-1",
        method="POST",
        endpoint="/v1/completions",
        status=status,
        start_s=1.0,
        end_s=3.5,
        key="alice",
        trace=TraceContext("a" * 32, "b" * 16, is_sampled=True),
        timeline=timeline,
    )


@given(st.lists(st.tuples(NAMES, st.floats(0, 100))), st.floats(0, 100))
def test_phases_follow_each_other_without_gap_or_overlap(
    steps: list[tuple[PhaseName, float]], last_s: float
) -> None:
    timeline, now_s = Timeline(), 0.0
    for name, seconds in steps:
        timeline.enter(name, now_s)
        now_s += seconds
    now_s += last_s
    timeline.leave(now_s)
    timeline.leave(now_s + 1)  # once is enough
    for before, after in itertools.pairwise(timeline.phases):
        assert before.end_s == after.start_s
        assert before.name != after.name
    spent = sum(timeline.seconds().values())
    assert abs(spent - (now_s if steps else 0)) < 1e-6


def test_the_first_token_is_counted_from_the_arrival() -> None:
    timeline = Timeline()
    timeline.enter("queue", 10.0)
    timeline.enter("prefill", 11.0)
    timeline.leave(12.0)
    assert timeline.ttft_s is None
    timeline.enter("decode", 12.5)
    timeline.leave(13.0)
    assert timeline.ttft_s == 2.5


def test_a_log_line_has_times_and_counts_and_leaves_out_what_does_not_apply() -> None:
    timeline = Timeline(model="m", num_prompt_tokens=5, num_output_tokens=2, finish_reasons=["stop"])
    timeline.enter("queue", 1.0)
    timeline.enter("prefill", 1.25)
    timeline.enter("decode", 2.0)
    timeline.leave(3.0)
    assert headline(account(timeline)) == "POST /v1/completions 200"
    assert log_fields(account(timeline)) == {
        "request_id": "req-1",
        "trace_id": "a" * 32,
        "method": "POST",
        "endpoint": "/v1/completions",
        "status": 200,
        "key": "alice",
        "model": "m",
        "total_s": 2.5,
        "ttft_s": 1.0,
        "queue_s": 0.25,
        "prefill_s": 0.75,
        "decode_s": 1.0,
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "output_tokens": 2,
        "finish_reason": "stop",
    }
    assert log_fields(account(Timeline(), 404)).keys() == {
        "request_id", "trace_id", "method", "endpoint", "status", "key", "total_s"
    }  # fmt: skip


def test_what_the_server_did_wrong_is_a_failure_and_what_the_client_did_is_none() -> None:
    assert account(Timeline(error="worker_died"), 500).has_failed
    assert account(Timeline(error="worker_died"), 200).has_failed, "within a stream"
    assert not account(Timeline(error=CANCELLED), 200).has_failed
    assert not account(Timeline(error="queue_full"), 429).has_failed
    assert not account(Timeline(), 200).has_failed
