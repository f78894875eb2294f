"""Sizes: what people may write, and what they are shown."""

import pytest
from hypothesis import given, strategies as st

from polyvol.daemon.sizes import format_ns
from polyvol.mapping.sizes import SIZE_MAX, argument_size, exact_size, format_size, parse_size


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


@pytest.mark.parametrize(
    ("size", "exact", "argument"),
    [
        (0, "0 B", "0"),
        (1023, "1023 B", "1023"),
        (4096, "4 KiB", "4K"),
        (1536, "1.5 KiB", "1536"),
        (5000, "4.9 KiB (5000 bytes)", "5000"),
        ((1 << 20) + 4096, "1.0 MiB (1052672 bytes)", "1028K"),
        (1 << 40, "1 TiB", "1T"),
        (3 << 29, "1.5 GiB", "1536M"),
        (-4096, "-4 KiB", "-4K"),
        ((1 << 63) - 1, "8192 PiB (9223372036854775807 bytes)", "9223372036854775807"),
    ],
)
def test_a_size_in_a_sentence_is_never_rounded_in_silence(size: int, exact: str, argument: str) -> None:
    assert exact_size(size) == exact
    assert argument_size(size) == argument


@given(st.integers(0, SIZE_MAX))
def test_a_size_as_an_option_is_read_as_the_same_size(size: int) -> None:
    assert parse_size(argument_size(size)) == size
