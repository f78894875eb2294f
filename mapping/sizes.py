"""Sizes and counts for people: as tables have them ('64 MiB'), exact where two are compared, or as an option
takes them, with K, M, G, T or P for powers of 1024.

Errors            ValueError of `parse_size`, with a sentence.
"""

import re
from decimal import Decimal

UNITS = "KMGTP"
SIZE_MAX = (1 << 63) - 1
"""The largest size that can be said, bytes."""
_FORM = re.compile(r"(\d{1,19})\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def format_size(size: int) -> str:
    """The size for people: exact where it can be ('64 MiB'), else with one decimal ('1.4 GiB')."""
    return _format(size)[0]


def exact_size(size: int) -> str:
    """The size for people, with its bytes where it was rounded: '1.0 MiB (1048577 bytes)'."""
    shown, exact = _format(size)
    return shown if exact else f"{shown} ({size} bytes)"


def _format(size: int) -> tuple[str, bool]:
    """The size for people, and whether that is all of it."""
    value, power = float(size), 0
    while abs(value) >= 1024 and power < len(UNITS):
        value /= 1024
        power += 1
    unit = f"{UNITS[power - 1]}iB" if power else "B"
    number = f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    return f"{number} {unit}", Decimal(number) * (1 << 10 * power) == size


def argument_size(size: int) -> str:
    """The size as --size and `truncate -s` take it: '1028K', '4097'."""
    for power in range(len(UNITS), 0, -1):
        if size and size % (1 << 10 * power) == 0:
            return f"{size >> 10 * power}{UNITS[power - 1]}"
    return str(size)


def counted(count: int, noun: str) -> str:
    """'1 partition', '2 partitions'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


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
