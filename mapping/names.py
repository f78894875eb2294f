"""Names: which ones volumes, snapshots and devices may have, and that none is given twice.

A name is a path component, an NBD export name, and an argument on a command line, so what would be misread in
any of these ('/', '@', blanks, control characters, a leading '-' or '.') is refused.
"""

import re
from collections.abc import Container, Sequence
from typing import Literal

from polyvol.mapping.errors import BadName, NameInUse, RepeatedDevice

Noun = Literal["volume", "snapshot", "device", "group", "schedule", "hold"]

NAME_LENGTH_MAX = 64
PREFIX_LENGTH_MAX = 40
"""So that the time, and a number, have room behind it."""
_ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")


def check_name(noun: Noun, name: str) -> str:
    """The name, if it is allowed; else BadName."""
    if _ALLOWED.fullmatch(name) is None:
        raise BadName(noun=noun, name=name)
    return name


def check_free(noun: Noun, name: str, taken: Container[str], shown: str | None = None) -> str:
    """The name, if it is allowed and free; else BadName or NameInUse, with the name as it is `shown`."""
    check_name(noun, name)
    if name in taken:
        raise NameInUse(noun=noun, name=shown or name)
    return name


def check_prefix(prefix: str) -> str:
    """What names of snapshots that are made from the time begin with, if it is allowed; else BadName."""
    if len(prefix) > PREFIX_LENGTH_MAX:
        raise BadName(noun="snapshot", name=prefix)
    return check_name("snapshot", prefix)


def is_pattern(name: str) -> bool:
    """Whether a name stands for several: with `*`, `?` or `[...]`."""
    return any(sign in name for sign in "*?[")


def name_from(text: str, fallback: str) -> str:
    """An allowed name as like `text` as can be."""
    name = _OTHERS.sub("-", text).strip("-").lstrip(".-")[:NAME_LENGTH_MAX]
    return name or fallback


def unique_name(name: str, taken: Container[str]) -> str:
    """`name`, or `name-2`, `name-3`...: the first that is not taken. Stays within the length."""
    if name not in taken:
        return name
    number = 2
    while True:
        tail = f"-{number}"
        candidate = name[: NAME_LENGTH_MAX - len(tail)] + tail
        if candidate not in taken:
            return candidate
        number += 1


def refuse_repeats(noun: str, names: Sequence[str]) -> None:
    """Refuse names of which one comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RepeatedDevice(noun=noun, name=name)
        seen.add(name)
