"""Sizes and counts for people: as tables have them ('64 MiB'), exact where two are compared, or as an option
takes them.

Errors            None.
"""

UNITS = "KMGTP"


def format_size(size: int) -> str:
    """The size for people: exact where it can be ('64 MiB'), else with one decimal ('1.4 GiB')."""
    value = float(size)
    unit = "B"
    for name in ["", *UNITS]:
        unit = f"{name}iB" if name else "B"
        if abs(value) < 1024 or name == UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def exact_size(size: int) -> str:
    """The size for people, with its bytes where it was rounded: '1.0 MiB (1048577 bytes)'."""
    shown = format_size(size)
    number, unit = shown.split()
    shift = 10 * (UNITS.find(unit[0]) + 1)
    whole, _, tenths = number.lstrip("-").partition(".")
    exact = 10 * abs(size) == (10 * int(whole) + int(tenths or 0)) << shift
    return shown if exact else f"{shown} ({size} bytes)"


def argument_size(size: int) -> str:
    """The size as --size and `truncate -s` take it: '1028K', '4097'."""
    for power in range(len(UNITS), 0, -1):
        if size and size % (1 << 10 * power) == 0:
            return f"{size >> 10 * power}{UNITS[power - 1]}"
    return str(size)


def counted(count: int, noun: str) -> str:
    """'1 partition', '2 partitions'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
