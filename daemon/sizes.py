"""Durations for people, and rates.

Sizes are in mapping/sizes.py."""

SCRUB_RATE_MIN = 64 << 10
SCRUB_RATE_MAX = 1 << 40
"""How many bytes a second a scrub reads."""


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
