"""The `traceparent` header, as the W3C recommendation has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.tracing.context import MAX_STATE_CHARS, TraceContext, context_from

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
IDS = st.integers(1, 2**128 - 1).map("{:032x}".format)
SPANS = st.integers(1, 2**64 - 1).map("{:016x}".format)


@given(IDS, SPANS, st.booleans())
def test_what_is_written_is_read_again(trace_id: str, span_id: str, is_sampled: bool) -> None:
    context = TraceContext(trace_id, span_id, is_sampled)
    assert context_from([context.traceparent]) == context


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\nforged",
        f"cc-{TRACE}-{SPAN}-01.more",
    ],
)
def test_a_header_that_the_recommendation_refuses_is_as_good_as_none(header: str) -> None:
    assert context_from([header]) is None


def test_later_versions_may_say_more_and_unknown_flags_mean_nothing() -> None:
    assert context_from([f"cc-{TRACE}-{SPAN}-fe-whatever"]) == TraceContext(TRACE, SPAN, is_sampled=False)


def test_two_parents_are_none() -> None:
    assert context_from([f"00-{TRACE}-{SPAN}-01"] * 2) is None
    assert context_from([]) is None


def test_the_state_is_passed_on_unless_it_is_too_long_or_not_printable() -> None:
    def state(*headers: str) -> str:
        found = context_from([f"00-{TRACE}-{SPAN}-01"], headers)
        assert found is not None
        return found.state

    assert state("a=1", "b=2") == "a=1,b=2"
    assert state("a=" + "x" * MAX_STATE_CHARS) == ""
    assert state("a=1\r\nforged") == ""


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_no_header_breaks_it(header: str) -> None:
    found = context_from([header], [header])
    assert found is None or int(found.trace_id, 16) > 0
