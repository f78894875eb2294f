"""Retention: which snapshots may go, and in which order; and which ones a schedule's rules keep. Pure.

How it works      Only snapshots that a schedule made and that have no hold may be deleted. Their order is
                  that of their epochs, never of their times. Of a schedule's snapshots, `last` keeps the
                  newest ones; `hourly`, `daily`, `weekly` and `monthly` keep the newest snapshot of each of
                  the latest hours, days, weeks (from Monday) and months that have one. All in UTC. A snapshot
                  that any rule keeps is kept.
                  A snapshot's time is in doubt if it is in the future, or if it does not fit the order of the
                  epochs: the fewest possible are doubted so that the times of the others ascend with the
                  epochs. A rule counts snapshots of doubtful times separately: it keeps the newest of each of
                  their latest hours, up to its number, and none that is older (by epoch) than every snapshot
                  that it keeps when it has its full number of the others. So they displace no others, and are
                  deleted when they would be with a correct clock.
Invariants        RN1 while the clock ascends, rules applied after each snapshot leave the same snapshots as
                  rules applied once at the end. A snapshot that a rule keeps is the newest of its hour (day,
                  ...) and the hour is among the latest ones; both were true at each earlier moment too, so it
                  was never deleted. So a simulation can predict which snapshots will exist.
                  RN2 snapshots that are held count, so that releasing one deletes no other.
                  RN3 whatever the clock says, `last` keeps the newest by epoch, every rule keeps the newest
                  of all, and no rule keeps more than twice its number.
Errors            `parse_keep` raises ValueError with a sentence.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import ClassVar

from polyvol.mapping.records.snapshots import SnapshotRecord

KEEP_MAX = 10_000
"""The most that one rule can keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How many snapshots each rule keeps; 0: there is no such rule."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def rules(self) -> dict[str, int]:
        """The rules that are set, by name."""
        return {name: count for name, count in asdict(self).items() if count}

    def wrong(self) -> str | None:
        """Why these cannot be a schedule's rules, or None."""
        for name, count in asdict(self).items():
            if not 0 <= count <= KEEP_MAX:
                return f"{name}={count} cannot be kept: give 0 to {KEEP_MAX}"
        return None if self.rules() else "nothing would be kept"

    def __str__(self) -> str:
        return ",".join(f"{name}={count}" for name, count in self.rules().items())


RULES = tuple(field.name for field in fields(Keep))


def parse_keep(text: str) -> Keep:
    """Rules written as 'last=4,hourly=24'."""
    counts: dict[str, int] = {}
    for term in text.split(","):
        name, _, count = (part.strip() for part in term.partition("="))
        if name not in RULES or not count.isdecimal() or not count.isascii() or len(count) > 9:
            raise ValueError(
                f"{term.strip()[:40]!r} is no rule: give RULE=NUMBER, RULE one of {', '.join(RULES)}"
            )
        if name in counts:
            raise ValueError(f"{name} is given twice")
        counts[name] = int(count)
    keep = Keep(**counts)
    wrong = keep.wrong()
    if wrong is not None:
        raise ValueError(wrong)
    return keep


def may_go(snapshot: SnapshotRecord) -> bool:
    """Whether it may be deleted without its user's `delete`: it was made by a schedule, and is not held."""
    return snapshot.origin == "schedule" and not snapshot.holds


def droppable(snapshots: Iterable[SnapshotRecord]) -> list[SnapshotRecord]:
    """Those that may be dropped to make room for writes, oldest first."""
    return sorted(filter(may_go, snapshots), key=lambda each: each.epoch)


def kept(instants: Sequence[int], keep: Keep, now: int) -> dict[int, list[str]]:
    """Which of a schedule's snapshots are kept, by their numbers in `instants` (ns since 1970, in the order
    of their epochs, oldest first), each with the rules that keep it; the others are left out."""
    reasons: dict[int, list[str]] = {}
    doubted = doubtful(instants, now)
    for rule, count in keep.rules().items():
        if rule == "last":
            found = set(range(max(0, len(instants) - count), len(instants)))
        else:
            found = _kept_by(_BUCKETS[rule], count, instants, doubted)
        for number in found:
            reasons.setdefault(number, []).append(rule)
    return reasons


def doubtful(instants: Sequence[int], now: int) -> set[int]:
    """The numbers of the snapshots whose times are in doubt, of `instants` in the order of their epochs: all
    that are not in a longest run of times that ascend and are not later than `now`."""
    ends: list[int] = []  # for each length, the smallest last time of a run
    numbers: list[int] = []  # and whose time it is
    before: dict[int, int | None] = {}
    for number, instant in enumerate(instants):
        if instant > now:
            continue
        length = bisect_right(ends, instant)
        before[number] = numbers[length - 1] if length else None
        ends[length : length + 1] = [instant]
        numbers[length : length + 1] = [number]
    doubted = set(range(len(instants)))
    at = numbers[-1] if numbers else None
    while at is not None:
        doubted.discard(at)
        at = before[at]
    return doubted


class Filling:
    """How full a schedule's rules become as runs are added, each later than the ones before."""

    def __init__(self, keep: Keep) -> None:
        self._counts = keep.rules()
        self._seen: dict[str, set[object]] = {rule: set() for rule in self._counts}

    def add(self, instant: int) -> bool:
        """Add a run; whether every rule now has one more than it keeps."""
        time = _utc(instant)
        for rule, seen in self._seen.items():
            if len(seen) <= self._counts[rule]:
                seen.add(instant if rule == "last" else _BUCKETS[rule](time))
        return all(len(seen) > self._counts[rule] for rule, seen in self._seen.items())


def _kept_by(
    bucket_of: Callable[[datetime], object], count: int, instants: Sequence[int], doubted: set[int]
) -> set[int]:
    """What one rule keeps."""
    found: set[int] = set()
    seen: dict[bool, set[object]] = {False: set(), True: set()}
    for number in reversed(range(len(instants))):
        if len(seen[False]) == count:
            break
        doubt = number in doubted
        bucket = bucket_of(_utc(instants[number]))
        if bucket not in seen[doubt] and len(seen[doubt]) < count:
            seen[doubt].add(bucket)
            found.add(number)
    return found


def _utc(instant: int) -> datetime:
    return datetime.fromtimestamp(instant // 1_000_000_000, UTC)


_BUCKETS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda moment: (moment.date(), moment.hour),
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: tuple(moment.isocalendar())[:2],
    "monthly": lambda moment: (moment.year, moment.month),
}
