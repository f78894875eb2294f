"""Snapshots, as the API shows them and is asked for them. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import ClassVar

from polyvol.daemon.ranges import Names
from polyvol.daemon.types.base import STRICT
from polyvol.daemon.types.log_areas import LogRuleView
from polyvol.daemon.types.partitions import PartitionSnapshotView, SnapshotPartsView
from polyvol.daemon.types.usage import SnapshotUseView
from polyvol.mapping.records.snapshots import Consistency, Origin


@dataclass(frozen=True, kw_only=True)
class StallView:
    """How long one processor kept writes waiting."""

    processor: int
    stall_ns: int


@dataclass(frozen=True, kw_only=True)
class SnapshotView:
    """A snapshot. `cut` is the same for all snapshots of one cut; `future`: its time lies in the future of
    the clock; `stall_ns` is the longest of the processors' write stalls; `durable_ns` goes from the start
    of the cut until it was flushed; `log_rules` has those of the change logs that begin with it, if it has
    rules of its own, `log_devices` their devices, and `log` the number of the one log area that they name, if
    it is one. `origin`: made by hand, or by a schedule (whose name is `schedule`, if it is one of
    polyvold's); `holds`: tags that keep it from being deleted. `whole`: the group's snapshot that it is
    part of, '@GROUP@NAME'. `consistency`: whether hooks have made ready for it what an application wrote
    ('application'), or it shows what a power loss would have left ('crash'; `hook_trouble` says why, if
    there were hooks). `copy_of`: the UUID of the snapshot that it was restored from a backup of.
    `thaw_trouble`: which thaw command failed and why, so that the application may still be quiesced; only in
    the answer to its creation. `clones`: volumes that were made from it. `use`: what it holds, None while the
    volume is not served, and in the answer to its creation. `deleted`: only an older copy of the catalog has
    it, and it is not exported. `parts` counts its partition snapshots, and `partitions` has each of them;
    both only if asked for (a page of them: /v1/volumes/{volume}/snapshots/{snapshot}/partitions)."""

    volume: str
    name: str
    export: str
    uuid: str
    cut: str
    epoch: int
    size: int
    log: int | None
    log_devices: list[str]
    log_rules: list[LogRuleView]
    created: str
    created_ns: int
    future: bool
    stall_ns: int
    stalls: list[StallView]
    durable_ns: int
    origin: Origin
    schedule: str | None
    holds: list[str]
    whole: str | None
    consistency: Consistency
    hook_trouble: str | None
    copy_of: str | None
    clones: list[str]
    use: SnapshotUseView | None
    connections: int
    deleted: bool
    parts: SnapshotPartsView | None = None
    partitions: list[PartitionSnapshotView] | None = None
    thaw_trouble: str | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotDeleted:
    """A snapshot that was deleted, and how much space that gave back."""

    volume: str
    name: str
    freed: int


@dataclass(frozen=True, kw_only=True)
class SnapshotWanted:
    """What is asked of a snapshot, apart from the volumes; see SnapshotCreate."""

    name: str | None = None
    prefix: str | None = None
    log_device: str | None = None
    log_devices: Names = ()
    scheduled: bool = False
    require_hooks: bool = False


@dataclass(frozen=True, kw_only=True)
class SnapshotCreate(SnapshotWanted):
    """One cut over these volumes. `name` None: made from the time, after `prefix`. `log_devices`: the log
    rules of the change logs that begin with it, as for VolumeCreate, but for each of the volumes; none: the
    volume's own. `log_device`: one more of them. `scheduled`: by a schedule, so that it may be dropped for
    space. `require_hooks`: no snapshot unless all hooks succeed."""

    __pydantic_config__: ClassVar = STRICT
    volumes: Names


@dataclass(frozen=True, kw_only=True)
class HoldChange:
    """A hold to begin, or with `release` one to end."""

    __pydantic_config__: ClassVar = STRICT
    tag: str
    release: bool = False
