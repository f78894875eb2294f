"""Schedules. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Number
from polyvol.daemon.types.base import STRICT
from polyvol.daemon.types.hooks import HookSettings, HookView
from polyvol.snapshot.retention import Keep


@dataclass(frozen=True, kw_only=True)
class RetainedSnapshotView:
    """A snapshot of a schedule: those that are to come have no `snapshot`. `kept_by`: the rules that keep
    it; none: it goes after the next run, unless it is held. `future`: its time lies in the future of the
    clock."""

    snapshot: str | None
    instant: str
    instant_ns: int
    kept_by: list[str]
    holds: list[str]
    future: bool


@dataclass(frozen=True, kw_only=True)
class ScheduleAdd:
    """Snapshots of `target`, VOLUME or @GROUP, either every so many seconds or by a cron expression. `name`
    None: made of the target and the prefix. `dry_run`: only tell what would be kept `ahead_s` seconds from
    now (None: when all rules are at their full)."""

    __pydantic_config__: ClassVar = STRICT
    target: str
    keep: Keep
    every_s: Number | None = None
    cron: str | None = None
    prefix: str = "auto"
    name: str | None = None
    hooks: HookSettings | None = None
    dry_run: bool = False
    ahead_s: Number | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleSet:
    """Pause a schedule, or resume it."""

    __pydantic_config__: ClassVar = STRICT
    paused: bool


@dataclass(frozen=True, kw_only=True)
class ScheduleView:
    """A schedule: `target` is VOLUME or @GROUP, `timing` says when in words. `last`: until when all that was
    due is done; `next`: when it is due next (None: paused). `error`: why the last run failed, if it did; it
    is tried again. `note`: what is odd about its times, as a clause. `snapshots` only if asked for: what is
    there of it, by epoch."""

    name: str
    target: str
    timing: str
    every_s: int | None
    cron: str | None
    keep: dict[str, int]
    prefix: str
    paused: bool
    last: str
    next: str | None
    error: str | None
    note: str | None
    hooks: HookView | None
    count: int
    created: str
    snapshots: list[RetainedSnapshotView] | None = None


@dataclass(frozen=True, kw_only=True)
class SchedulePlanView:
    """A schedule as it would be: its first runs, how many there would be until `until`, and what would be
    kept then, by epoch. `note`: what to know about it, None for nothing."""

    name: str
    target: str
    timing: str
    keep: dict[str, int]
    first: list[str]
    until: str
    runs: int
    note: str | None
    kept: list[RetainedSnapshotView]
