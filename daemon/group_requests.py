"""What can be asked of groups, holds, schedules, hooks and growth: bodies of the API's requests."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Names, Number
from polyvol.mapping.group import HOOK_TIMEOUT_S
from polyvol.snapshot.retention import Keep

_STRICT = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, kw_only=True)
class GroupCreate:
    """A group of these volumes."""

    __pydantic_config__: ClassVar = _STRICT
    name: str
    volumes: Names = ()


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """Volumes that join a group, and those that leave it."""

    __pydantic_config__: ClassVar = _STRICT
    join: Names = ()
    leave: Names = ()


@dataclass(frozen=True, kw_only=True)
class GroupSnapshotCreate:
    """One cut over a group's volumes; the rest as for SnapshotCreate."""

    __pydantic_config__: ClassVar = _STRICT
    name: str | None = None
    prefix: str | None = None
    log_device: str | None = None
    scheduled: bool = False
    require_hooks: bool = False


@dataclass(frozen=True, kw_only=True)
class HoldChange:
    """A hold to begin, or with `release` one to end."""

    __pydantic_config__: ClassVar = _STRICT
    tag: str
    release: bool = False


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A rollback. `force`: disconnect clients of the volume; `safety`: keep what it was as a snapshot, named
    `safety_name` or before-SNAPSHOT."""

    __pydantic_config__: ClassVar = _STRICT
    force: bool = False
    safety: bool = True
    safety_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class HookSettings:
    """Commands to run around a cut; both None: none. `timeout_s`: from the beginning of `quiesce` on, and
    for `thaw` itself. `shell`: /bin/sh runs them."""

    __pydantic_config__: ClassVar = _STRICT
    quiesce: str | None = None
    thaw: str | None = None
    timeout_s: Number = HOOK_TIMEOUT_S
    shell: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduleAdd:
    """Snapshots of `target`, VOLUME or @GROUP, either every so many seconds or by a cron expression. `name`
    None: made of the target and the prefix. `dry_run`: only tell what would be kept `ahead_s` seconds from
    now (None: when all rules are at their full)."""

    __pydantic_config__: ClassVar = _STRICT
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

    __pydantic_config__: ClassVar = _STRICT
    paused: bool


@dataclass(frozen=True, kw_only=True)
class VolumeGrow:
    """Make a volume this large, in bytes. What is new goes to `devices`; none: to sparse files made for
    it."""

    __pydantic_config__: ClassVar = _STRICT
    size: Number
    devices: Names = ()
