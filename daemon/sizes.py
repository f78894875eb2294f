"""Sizes as people write and read them: bytes, with K, M, G, T or P for powers of 1024."""

import re

from polyvol.mapping.sizes import UNITS, format_size

SIZE_MAX = (1 << 63) - 1
"""The largest size that can be said, bytes."""
SCRUB_RATE_MIN = 64 << 10
SCRUB_RATE_MAX = 1 << 40
"""How many bytes a second a scrub reads."""
_FORM = re.compile(r"(\d{1,19})\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of '4096', '64M', '1GiB', '10 g'; ValueError with a sentence for anything else."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise ValueError(
            f"{text[:40]!r} is not a size: give bytes, or a whole number with K, M, G, T or P, such as 64M"
        )
    number, unit = match.groups()
    size = int(number) << (10 * (UNITS.index(unit.upper()) + 1) if unit else 0)
    if size > SIZE_MAX:
        raise ValueError(f"{text.strip()!r} is too large: a size is less than {format_size(SIZE_MAX + 1)}")
    return size


def format_seconds(duration: int) -> str:
    """A time to go for people: '40 s', '12 min', '3 h', '9 days'."""
    for unit, seconds in (("days", 86_400), ("h", 3600), ("min", 60)):
        if duration >= 2 * seconds:
            return f"{duration // seconds} {unit}"
    return f"{duration} s"


def format_ns(duration: int) -> str:
    """A duration for people: '850 ns', '12.3 us', '1.5 ms', '2.00 s'."""
    if duration < 1000:
        return f"{duration} ns"
    if duration < 1_000_000:
        return f"{duration / 1000:.1f} us"
    if duration < 1_000_000_000:
        return f"{duration / 1_000_000:.1f} ms"
    return f"{duration / 1_000_000_000:.2f} s"
