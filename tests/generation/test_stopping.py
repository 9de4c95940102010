"""Stop strings: nothing at or after one ever leaves, and nothing else is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.stopping import StopStrings

TEXT = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


@given(TEXT, STOPS, st.data())
def test_any_cutting_gives_the_text_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    watcher = StopStrings(stops)
    sent, rest = "", text
    while rest and not watcher.stopped:
        cut = data.draw(st.integers(1, len(rest)))
        sent += watcher.feed(rest[:cut])
        assert not any(stop in sent for stop in stops)
        rest = rest[cut:]
    if watcher.stopped:
        assert watcher.feed("more") == ""
    else:
        sent += watcher.flush()
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    if positions:
        assert watcher.stopped
        assert text.startswith(sent)
        # A longer stop that is not complete yet may let a later one through first; never an earlier cut.
        assert len(sent) >= min(positions)
        assert not any(stop in sent for stop in stops)
    else:
        assert not watcher.stopped
        assert sent == text


def test_a_stop_that_spans_pieces_is_held_back() -> None:
    watcher = StopStrings(["END"])
    assert watcher.feed("one E") == "one "
    assert watcher.feed("N") == ""
    assert watcher.feed("D two") == ""
    assert watcher.stopped


def test_what_only_began_like_a_stop_is_sent() -> None:
    watcher = StopStrings(["END"])
    assert watcher.feed("E") == ""
    assert watcher.feed("x") == "Ex"
    assert watcher.feed("EN") == ""
    assert watcher.flush() == "EN"
