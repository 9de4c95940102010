"""Sizes, shares and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.config.units import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_share,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("1B", 1),
        ("8GiB", 8 * 1024**3),
        ("8 gib", 8 * 1024**3),
        ("512Mi", 512 * 1024**2),
        ("1.5KiB", 1536),
        ("2TB", 2 * 1000**4),
        ("10kb", 10_000),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text: str | int, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "8 apples", "-1GiB", -1, True, "1e9", "nan", "infGiB", "90%", "8G", "٣GiB", 2**61, None],
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_bytes(text)  # type: ignore[arg-type]


def test_an_ambiguous_unit_is_refused_with_the_units_to_choose_from() -> None:
    with pytest.raises(ValueError, match="write KiB, MiB, GiB, TiB"):
        parse_bytes("8G")


@pytest.mark.parametrize(
    ("text", "share"), [("90%", 0.9), ("100 %", 1.0), (0.5, 0.5), ("0.5", 0.5), (1, 1.0)]
)
def test_shares_are_read_as_percentages_and_fractions(text: str | float, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["0%", 0, "101%", 1.5, -0.1, "nan", float("nan"), float("inf"), True, "half", None]
)
def test_what_is_no_share_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="share such as"):
        parse_share(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (600, 600.0),
        ("600", 600.0),
        (0, 0.0),
        ("10s", 10.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
    ],
)
def test_durations_are_seconds(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [-1, "-1", -1.0])
def test_minus_one_is_for_ever(text: str | float) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    "text", ["", -2, "-5m", "m", "5 m", "1d2y", "inf", float("nan"), float("inf"), True, 1e30]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration such as"):
        parse_duration(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (8 * 1024**3, "8 GiB"),
        (5 * 1024**4, "5 TiB"),
    ],
)
def test_sizes_are_shown_short(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(0, 2**60))
def test_a_shown_size_reads_back_within_one_percent(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.01)


@given(st.integers(0, 10 * 365 * 86400))
def test_a_shown_duration_reads_back_as_it_was(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


def test_no_end_is_shown_as_words() -> None:
    assert format_duration(None) == "for ever"
