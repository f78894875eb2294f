"""Groups, their snapshots, and rollback. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Names
from polyvol.daemon.types.base import STRICT
from polyvol.daemon.types.snapshots import SnapshotView, SnapshotWanted


@dataclass(frozen=True, kw_only=True)
class GroupCreate:
    """A group of these volumes."""

    __pydantic_config__: ClassVar = STRICT
    name: str
    volumes: Names = ()


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """Volumes that join a group, and those that leave it."""

    __pydantic_config__: ClassVar = STRICT
    join: Names = ()
    leave: Names = ()


@dataclass(frozen=True, kw_only=True)
class GroupSnapshotCreate(SnapshotWanted):
    """One cut over a group's volumes; the rest as for SnapshotCreate."""

    __pydantic_config__: ClassVar = STRICT


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
class GroupSnapshotView:
    """A snapshot of a group. `future`: its time lies in the future of the clock. `members`: the snapshots of
    its volumes, whichever volumes are in the group now. `schedule` and `holds` are the same for all of them.
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
class RollbackStart:
    """A rollback. `force`: disconnect clients of the volume; `safety`: keep what it was as a snapshot, named
    `safety_name` or before-SNAPSHOT."""

    __pydantic_config__: ClassVar = STRICT
    force: bool = False
    safety: bool = True
    safety_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackView:
    """Volumes that were rolled back to their snapshot of this name, and the name of the snapshots of what
    they were, None if that is gone."""

    volumes: list[str]
    snapshot: str
    safety: str | None
