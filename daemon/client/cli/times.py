"""Times for people: short, in UTC, or with --local in the time zone of this host.

How it works      The API gives times as ISO 8601 in UTC with microseconds, and so does --json. A fact shows
                  seconds and the zone ('2026-11-30 06:24:11 UTC'). A table shows minutes, or seconds if two
                  different times of a column lie in one minute; its header names the zone.
Errors            None: a text that is not a time is shown as it is.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import click

from polyvol.daemon.client.cli.common import Command

_LOCAL = "polyvol.local"
_SECONDS = "%Y-%m-%d %H:%M:%S"
_SECONDS_LENGTH = len("2026-11-30 06:24:11")
_MINUTES_LENGTH = len("2026-11-30 06:24")


def local_option(command: Command) -> Command:
    """--local: `moment` and `moments` then use the time zone of this host."""
    return click.option(
        "--local",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Show times in this host's time zone [UTC].",
    )(command)


def moment(text: str | None) -> str | None:
    """A time with seconds and its zone; None for None."""
    time = _read(text)
    return text if time is None else f"{time.strftime(_SECONDS)} {time.tzname()}"


def moments(texts: Sequence[str | None], future: Sequence[bool] = ()) -> list[str]:
    """A column of times, '-' for None; `future`: which of them are later than the clock."""
    times = [_read(text) for text in texts]
    seconds = [None if time is None else str(time)[:_SECONDS_LENGTH] for time in times]
    known = {each for each in seconds if each is not None}
    length = _MINUTES_LENGTH if len({each[:_MINUTES_LENGTH] for each in known}) == len(known) else None
    shown = [
        text or "-" if each is None else each[:length] for text, each in zip(texts, seconds, strict=True)
    ]
    marks = [*future, *([False] * (len(shown) - len(future)))]
    return [in_future(each, mark) for each, mark in zip(shown, marks, strict=True)]


def zoned(header: str) -> str:
    """The header of a column of times."""
    return f"{header} ({'local' if _is_local() else 'UTC'})"


def in_future(text: str, future: bool) -> str:
    """A time for people, marked if it is later than the clock."""
    return f"{text} (in the future)" if future else text


def _read(text: str | None) -> datetime | None:
    if text is None:
        return None
    with suppress(ValueError, TypeError, OverflowError):
        time = datetime.fromisoformat(text).astimezone(UTC)
        return time.astimezone() if _is_local() else time
    return None


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta[_LOCAL] = True


def _is_local() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().meta.get(_LOCAL))
