"""Sizes: what people may write, and what they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvol.daemon.sizes import SIZE_MAX, format_ns, format_size, parse_size
from polyvol.mapping.sizes import exact_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("10GiB", 10 << 30),
        ("10 GB", 10 << 30),
        ("2T", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "1.5G", "-1", "1X", "G", "1 2", "1e3", "1KK", "\u0661", "9" * 5000, "1e400"]
)
def test_what_is_no_size_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8192P", "9223372036854775808", "9999999999999999999T"])
def test_a_size_that_nothing_can_have_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is too large: a size is less than 8192 PiB"):
        parse_size(text)
    assert parse_size("9223372036854775807") == SIZE_MAX


@given(st.integers(0, 1 << 60))
def test_a_shown_size_is_near_the_size(size: int) -> None:
    number, unit = format_size(size).split()
    shown = float(number) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(shown - size) <= 0.051 * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)


def test_durations_are_shown_in_a_fitting_unit() -> None:
    assert [format_ns(ns) for ns in (5, 1500, 2_500_000, 3_000_000_000)] == [
        "5 ns",
        "1.5 us",
        "2.5 ms",
        "3.00 s",
    ]


def test_a_size_that_is_rounded_is_told_in_bytes_as_well() -> None:
    assert exact_size(0) == "0 B"
    assert exact_size(64 << 20) == "64 MiB"
    assert exact_size((1 << 30) + 4096) == "1.0 GiB (1073745920 bytes)"
    assert exact_size((1 << 60) + 1) == "1024 PiB (1152921504606846977 bytes)"
