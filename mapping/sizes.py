"""Sizes as people read them: powers of 1024."""

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
    """The same, with the bytes where that is not exact: '1.4 GiB (1503238554 bytes)'."""
    unit = max(0, size.bit_length() - 1) // 10 * 10
    shown = format_size(size)
    return shown if size % (1 << min(unit, 50)) == 0 else f"{shown} ({size} bytes)"
