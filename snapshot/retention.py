"""Retention: which snapshots may go, and in which order; and which ones a schedule's rules keep. Pure.

How it works      Only what a schedule made and nobody holds may ever go. Of a schedule's snapshots, `last`
                  keeps the newest ones; `hourly`, `daily`, `weekly` and `monthly` keep the newest snapshot of
                  each of the latest hours, days, weeks (from Monday) and months that have one. All in UTC. A
                  snapshot that any rule keeps is kept.
Invariants        N1 the order of looking does not matter: rules applied after each snapshot leave what they
                  leave when applied once at the end. What a rule keeps is the newest of its hour (day, ...)
                  and the hour is among the latest ones; both held at each earlier moment too, so it was never
                  let go. That is why a simulation can tell today what will be there.
                  N2 snapshots that are held count, so that releasing one makes no other go.
Errors            `parse_keep` raises ValueError with a sentence.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from polyvol.mapping.records import SnapshotRecord

KEEP_MAX = 10_000
"""The most that one rule can keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How many snapshots each rule keeps; 0: the rule is not there."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def rules(self) -> dict[str, int]:
        """The rules that are there, by name."""
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
        if name not in RULES or not count.isdecimal() or not count.isascii():
            raise ValueError(f"{term.strip()!r} is no rule: give RULE=NUMBER, RULE one of {', '.join(RULES)}")
        if name in counts:
            raise ValueError(f"{name} is given twice")
        counts[name] = int(count)
    keep = Keep(**counts)
    wrong = keep.wrong()
    if wrong is not None:
        raise ValueError(wrong)
    return keep


def may_go(snapshot: SnapshotRecord) -> bool:
    """Whether anything but its user's own `delete` may delete it: made by a schedule, and not held."""
    return snapshot.origin == "schedule" and not snapshot.holds


def droppable(snapshots: Iterable[SnapshotRecord]) -> list[SnapshotRecord]:
    """Those that may be dropped to make room for writes, oldest first."""
    return sorted(filter(may_go, snapshots), key=lambda each: each.epoch)


def kept(instants: Sequence[int], keep: Keep) -> dict[int, list[str]]:
    """Which of a schedule's instants (ns since 1970) are kept, each with the rules that keep it; the others
    are not in it."""
    reasons: dict[int, list[str]] = {}
    newest_first = sorted(set(instants), reverse=True)
    for rule, count in keep.rules().items():
        seen: set[object] = set()
        for instant in newest_first:
            bucket = instant if rule == "last" else _BUCKETS[rule](_utc(instant))
            if bucket in seen:
                continue
            if len(seen) == count:
                break
            seen.add(bucket)
            reasons.setdefault(instant, []).append(rule)
    return reasons


def _utc(instant: int) -> datetime:
    return datetime.fromtimestamp(instant // 1_000_000_000, UTC)


_BUCKETS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda moment: (moment.date(), moment.hour),
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: tuple(moment.isocalendar())[:2],
    "monthly": lambda moment: (moment.year, moment.month),
}
