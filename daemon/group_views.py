"""What the daemon answers about groups, holds, schedules and hooks: bodies of the API's responses."""

from dataclasses import dataclass

from polyvol.daemon.views import HookView, SnapshotView


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A group: its volumes, and the names of its snapshots, oldest first."""

    name: str
    uuid: str
    volumes: list[str]
    snapshots: list[str]
    schedules: list[str]
    created: str


@dataclass(frozen=True, kw_only=True)
class GroupDeleted:
    """A group that was deleted, and its schedules with it."""

    name: str
    schedules: list[str]


@dataclass(frozen=True, kw_only=True)
class RollbackView:
    """Volumes that were rolled back to their snapshot of this name, and the name of the snapshots of what
    they were, None if that is gone."""

    volumes: list[str]
    snapshot: str
    safety: str | None


@dataclass(frozen=True, kw_only=True)
class GroupSnapshotView:
    """A snapshot of a group. `future`: its time lies in the future of the clock. `members`: the snapshots of
    its volumes, whoever is in the group by now. `schedule` and `holds` are the same for all of them.
    `consistency` is 'application' if it is for each."""

    group: str
    name: str
    export: str
    cut: str
    created: str
    future: bool
    stall_ns: int
    durable_ns: int
    origin: str
    schedule: str | None
    holds: list[str]
    consistency: str
    members: list[SnapshotView]


@dataclass(frozen=True, kw_only=True)
class GroupSnapshotDeleted:
    """A group's snapshot that was deleted, and how much space that gave back."""

    group: str
    name: str
    volumes: list[str]
    freed: int


@dataclass(frozen=True, kw_only=True)
class KeptView:
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
    snapshots: list[KeptView] | None = None


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
    kept: list[KeptView]
