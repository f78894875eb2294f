"""Volumes, as the API shows them and is asked for them. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyvol.daemon.ranges import NUMBER_MAX, Names, Number, Processors
from polyvol.daemon.types.base import STRICT
from polyvol.daemon.types.devices import ExtentView
from polyvol.daemon.types.hooks import HookSettings, HookView
from polyvol.daemon.types.log_areas import LogLimitView, LogRuleView, LogView, SpaceView
from polyvol.daemon.types.places import Places
from polyvol.daemon.types.restores import IncompleteRestoreView
from polyvol.daemon.types.scrubs import BadBlockView, ScrubView
from polyvol.daemon.types.usage import VolumeUseView
from polyvol.mapping.partition import PARTITION_SIZE_DEFAULT
from polyvol.mapping.records.volumes import WhenFull

LogLimit = Literal["auto", "none"] | Annotated[int, Field(gt=0, le=NUMBER_MAX)]
"""Up to what size log areas grow."""


@dataclass(frozen=True, kw_only=True)
class DroppedSnapshotView:
    """A snapshot of `created` that was dropped at `dropped` so that writes went on; `freed` bytes, None where
    nobody knows."""

    snapshot: str
    created: str
    dropped: str
    freed: int | None


@dataclass(frozen=True, kw_only=True)
class ExportView:
    """An NBD export and how many clients are connected to it."""

    name: str
    read_only: bool
    connections: int


@dataclass(frozen=True, kw_only=True)
class PartitionView:
    """A partition: its extents in order, and the processor that owns it. `state`: 'ok', or 'faulty' with a
    `reason` if a device that it lies on is missing or faulty."""

    number: int
    processor: int
    extents: list[ExtentView]
    state: Literal["ok", "faulty"] = "ok"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class CloneSourceView:
    """The snapshot that a clone was made from; `deleted`: it is not there but for its clones."""

    volume: str
    snapshot: str
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class RelocationView:
    """How blocks of a volume are brought from change logs back to their base places. `rate`: at most so many
    bytes per second, 0: not at all; null: as there is opportunity. Since polyvold began to serve it: `moved`
    bytes, and `failed` batches with blocks that could not be moved. `speed`: bytes per second now. `state`:
    what it does, or why it waits. `left`: bytes that it can still move, as last counted (null: not yet);
    `eta_s`: how long that takes at this speed, seconds (null: it does not move). `written`: bytes that hosts
    wrote in the same time; `amplification`: bytes moved for each byte that they wrote in this time, or
    before, if it was still in change logs at the beginning (null: there was none)."""

    rate: int | None
    moved: int
    failed: int
    speed: int
    state: str
    left: int | None = None
    eta_s: int | None = None
    written: int | None = None
    amplification: float | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeView:
    """A volume. `state`: 'serving'; 'degraded' (served, but for what `reason` says); 'not-served' (`reason`
    says why); 'restoring' (`restore` says what; not exported until that is complete); 'creating', 'deleting'
    (being made or given back); 'kept' (deleted, and kept for its clones).
    `source`: what it was made from, if it is a clone. `connections` counts clients of the volume
    and of its snapshots. `when_full`: what gives way when its change logs are full; `logs`: its log areas;
    `log_rules`: which of them its change logs use (none: any); `space`: their use, None while it is not
    served; `dropped`: the latest snapshots that were dropped to free space, newest first.
    `bad_blocks` lists those that are known to be bad (at most 128), `last_scrub` is the last one that came to
    its end, `hooks` are run around its cuts. `log_limit`: up to what size its log areas grow. `use` (of the
    change logs, by whom) and `relocation` only while it is served: counted when the volume is asked for by
    name, and in the status as they were last counted (null: not yet). `advice`: what to do about change logs
    that are not 'ok', if the volume is asked for by name. `partitions` only if asked for."""

    name: str
    uuid: str
    state: Literal["serving", "degraded", "not-served", "restoring", "creating", "deleting", "kept"]
    reason: str | None
    size: int
    partition_size: int
    partition_count: int
    processors: list[int]
    devices: list[str]
    base: str | None
    source: CloneSourceView | None
    when_full: WhenFull
    logs: list[LogView]
    log_rules: list[LogRuleView]
    space: SpaceView | None
    dropped: list[DroppedSnapshotView]
    exports: list[ExportView]
    connections: int
    snapshots: list[str]
    created: str
    bad_blocks: list[BadBlockView] = field(default_factory=list)
    last_scrub: ScrubView | None = None
    hooks: HookView | None = None
    restore: IncompleteRestoreView | None = None
    log_limit: LogLimitView | None = None
    use: VolumeUseView | None = None
    relocation: RelocationView | None = None
    advice: str | None = None
    partitions: list[PartitionView] | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedDevice:
    """A device that would be made."""

    name: str
    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """A volume as it would be made."""

    name: str
    size: int
    partition_size: int
    partition_count: int
    processors: list[int]
    new_devices: list[PlannedDevice]
    logs: list[LogView]
    log_rules: list[LogRuleView]
    partitions: list[PartitionView]


@dataclass(frozen=True, kw_only=True)
class VolumeDeleted:
    """A volume that was deleted, with so many snapshots."""

    name: str
    snapshots: int


@dataclass(frozen=True, kw_only=True)
class VolumeCreate:
    """Either `size` or `base`, the name of an adopted device. No devices: sparse files are made for it.
    `log_devices`: its log rules, as --log-device has them. `processors`: how many, or their numbers; None:
    all that there are. `place`: of some of its partitions, as --place has it or as an object. `log_limit`: up
    to how many bytes its log areas, all together, grow by themselves; 'none': not at all; 'auto': twice its
    size. `dry_run`: plan it only."""

    __pydantic_config__: ClassVar = STRICT
    name: str
    size: Number | None = None
    partition_size: Number = PARTITION_SIZE_DEFAULT
    devices: Names = ()
    log_devices: Names = ()
    processors: Processors | None = None
    place: Places = ()
    base: str | None = None
    when_full: WhenFull = "keep-writing"
    log_limit: LogLimit = "auto"
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class CloneCreate:
    """A volume `name` made from a snapshot. `log_devices`: where what is written to it goes, as for
    VolumeCreate; none: sparse files are made for it. `processors`: as for VolumeCreate, and `log_limit`, but
    'auto' is three times its size, because it has no base places."""

    __pydantic_config__: ClassVar = STRICT
    name: str
    log_devices: Names = ()
    processors: Processors | None = None
    when_full: WhenFull = "keep-writing"
    log_limit: LogLimit = "auto"


@dataclass(frozen=True, kw_only=True)
class VolumeSet:
    """What is to be changed of a volume; None: it stays. `log_devices`: all of its log rules, as for
    VolumeCreate, for change logs to come; none: any log area. `relocate`: 'auto', 'off', or bytes per second:
    how its blocks are brought from change logs back to their base places. `log_limit`: as for
    VolumeCreate."""

    __pydantic_config__: ClassVar = STRICT
    when_full: WhenFull | None = None
    log_devices: Names | None = None
    hooks: HookSettings | None = None
    relocate: Literal["auto", "off"] | Number | None = None
    log_limit: LogLimit | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeGrow:
    """Make a volume this large, in bytes. What is new goes to `devices`; none: to sparse files made for
    it."""

    __pydantic_config__: ClassVar = STRICT
    size: Number
    devices: Names = ()
