"""Timing: when a schedule is due. Pure.

How it works      `--every` is due at the whole multiples of its interval since 1970, so that 15m is due at
                  :00, :15, :30 and :45 whenever polyvold was started; `--cron` as cronsim says. Both in UTC,
                  which has no daylight saving time: no run is skipped or repeated.
Errors            `check_cron` and `parse_duration` raise ValueError with a sentence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

SECOND_NS = 1_000_000_000
EVERY_S_MAX = 366 * 86_400
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(\d{1,9})\s*([smhdw]?)")


@dataclass(frozen=True, slots=True)
class Timing:
    """Either an interval in seconds, or a cron expression."""

    every_s: int | None = None
    cron: str | None = None

    def after(self, instant: int) -> int | None:
        """The first time when it is due after an instant (both ns since 1970); None if never."""
        if self.every_s is not None:
            step = self.every_s * SECOND_NS
            return (instant // step + 1) * step
        assert self.cron is not None, "one of both is given"
        moment = datetime.fromtimestamp(instant // SECOND_NS, UTC)
        found = next(CronSim(self.cron, moment), None)
        return None if found is None else int(found.timestamp()) * SECOND_NS

    def between(self, begin: int, end: int) -> Iterator[int]:
        """When it is due after `begin` and not after `end`, in order."""
        if self.every_s is None:
            assert self.cron is not None, "one of both is given"
            for moment in CronSim(self.cron, datetime.fromtimestamp(begin // SECOND_NS, UTC)):
                instant = int(moment.timestamp()) * SECOND_NS
                if instant > end:
                    return
                yield instant
        due = self.after(begin)
        while due is not None and due <= end:
            yield due
            due = self.after(due)

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.every_s is None else f"every {format_duration(self.every_s)}"


def check_cron(expression: str) -> None:
    """Return if a cron expression is valid and is ever due."""
    fields = len(expression.split())
    if fields != 5:
        has = f"has {fields} field{'' if fields == 1 else 's'}"
        five = "minute, hour, day of the month, month and day of the week"
        raise ValueError(f"the cron expression {expression!r} {has}: give five, which are {five}")
    try:
        found = next(CronSim(expression, datetime.now(UTC)), None)
    except CronSimError as error:
        raise ValueError(f"the cron expression {expression!r} is not right: {_what(error)}") from error
    if found is None:
        raise ValueError(f"the cron expression {expression!r} is never due")


def _what(error: CronSimError) -> str:
    """The invalid field, such as of 'Bad day-of-month'."""
    field = str(error).removeprefix("Bad ")
    return f"its field {field.replace('-of-', ' of the ')} has no value that can be"


def parse_duration(text: str) -> int:
    """Seconds of '90', '90s', '15m', '2h', '1d' or '1w'."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise ValueError(f"{text!r} is not a duration: give a whole number with s, m, h, d or w, such as 15m")
    return int(match[1]) * _UNITS_S[match[2]]


def format_duration(seconds: int) -> str:
    """A duration as `parse_duration` reads it, in the largest unit that it is a whole number of."""
    unit = next(unit for unit in ("w", "d", "h", "m", "s") if seconds % _UNITS_S[unit] == 0)
    return f"{seconds // _UNITS_S[unit]}{unit}"
