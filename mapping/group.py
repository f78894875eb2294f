"""Groups, schedules and hooks as the catalog knows them: plain records, made only by the catalog."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Consistency = Literal["application", "crash"]
"""What a snapshot shows: what an application made ready for it, or what a power loss would have left."""


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of volumes, by id."""

    id: int
    uuid: UUID
    name: str
    volumes: tuple[int, ...]
    created_ns: int


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A snapshot of a group: all snapshots of one cut, whichever volumes are in the group now."""

    cut: UUID
    group: int
    name: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """When snapshots are taken of a volume or of a group (by id), and which are kept: `keep` has rules and
    counts. What was due until `last_ns` (ns since 1970) is done. `error`: why the last run failed, if it
    did."""

    id: int
    name: str
    volume: int | None
    group: int | None
    every_s: int | None
    cron: str | None
    keep: Mapping[str, int]
    prefix: str
    paused: bool
    last_ns: int
    error: str | None
    created_ns: int


HOOK_TIMEOUT_S = 30
"""The time-out of hooks for which none is given, seconds."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands that are run around a cut: `quiesce` before it, `thaw` after it, in at most `timeout_s` from
    begin to end. `shell`: /bin/sh runs them."""

    quiesce: str | None
    thaw: str | None
    timeout_s: int
    shell: bool
