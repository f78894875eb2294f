"""Dry run: what a schedule would keep: its runs simulated, for `schedule add --dry-run`.

How it works      Runs are counted from now on until every rule has more than it keeps, so that the plan shows
                  which snapshots go; or for as long as was asked for. The rules are then applied once at the
                  end, which leaves what applying them after each run leaves (RN1 of snapshot/retention.py).
                  Rare runs may need longer than anybody looks ahead: then a note says so.
Errors            BadSchedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polyvol.snapshot.errors.schedules import BadSchedule
from polyvol.snapshot.retention import Filling, Keep, kept
from polyvol.snapshot.timing import SECOND_NS, Timing

RUNS_MAX = 200_000
AHEAD_S_MAX = 36_600 * 86_400
"""How far a plan looks ahead at most: a hundred years."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """When the runs are, until when (all ns since 1970), which snapshots are kept then (numbers in those that
    are there and then the runs, with the rules that keep them), and what to know about it."""

    dues: list[int]
    until: int
    kept: dict[int, list[str]]
    note: str | None


def plan(timing: Timing, keep: Keep, there: Sequence[int], now: int, ahead_s: int | None) -> Plan:
    """The plan of a schedule that begins now; `there`: the instants of the snapshots that it has."""
    end = now + (AHEAD_S_MAX if ahead_s is None else ahead_s) * SECOND_NS
    dues: list[int] = []
    filling = Filling(keep)
    full = False
    for due in timing.between(now, end):
        if len(dues) == RUNS_MAX:
            why = f"more than {RUNS_MAX} runs cannot be looked ahead: ask for less with --ahead"
            raise BadSchedule(why=why)
        dues.append(due)
        full = filling.add(due)
        if full and ahead_s is None:
            end = due
            break
    note = None
    if ahead_s is None and not full:
        note = "looked ahead 100 years; some rules keep more than is taken by then"
    return Plan(dues=dues, until=end, kept=kept([*there, *dues], keep, end), note=note)
