"""Nothing of or behind a stop string leaves, wherever the pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.stopping import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    watch = StopStrings(stops)
    out: list[str] = []
    for piece in pieces:
        out.append(watch.feed(piece))
        if watch.stopped:
            return out, True
    return [*out, watch.flush()], False


def test_text_passes_untouched_without_stop_strings() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], False)


def test_a_stop_string_across_pieces_is_found() -> None:
    assert run(["END"], ["one E", "N", "D two"]) == (["one ", "", ""], True)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    watch = StopStrings(["\n\nUser:"])
    assert watch.feed("hello") == "hello"
    assert watch.feed("\n") == ""
    assert watch.feed("more") == "\nmore"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert run(["bc", "d"], ["abcd"]) == (["a"], True)


def test_nothing_leaves_after_the_stop() -> None:
    watch = StopStrings(["x"])
    assert watch.feed("axb") == "a"
    assert watch.feed("more") == ""
    assert watch.flush() == ""


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_the_result_does_not_depend_on_the_cuts(stops: list[str], pieces: list[str]) -> None:
    out, stopped = run(stops, pieces)
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(found)
    sent = "".join(out)
    assert text.startswith(sent)
    assert not any(stop in sent for stop in stops)
    if not found:
        assert sent == text


@given(
    st.text(alphabet="abc", max_size=24),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4),
    st.data(),
)
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
    if not watcher.stopped:
        sent += watcher.flush()
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    assert watcher.stopped == bool(positions)
    assert text.startswith(sent)
    # A longer stop that is not complete yet may let a later one through first; never an earlier cut.
    assert len(sent) >= min(positions) if positions else sent == text
