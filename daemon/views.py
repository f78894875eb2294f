"""What the daemon answers: the bodies of the API's responses, and what `--json` prints.

Sizes, offsets and lengths are bytes; *_ns are nanoseconds; times in words are ISO 8601, UTC.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from polyvol.daemon.use_views import SnapshotUseView, VolumeUseView
from polyvol.mapping.group import Consistency
from polyvol.mapping.records import Origin, WhenFull

ScrubState = Literal["running", "done", "stopped", "failed"]
WHY_FUTURE = "so the clock was ahead then, or is behind now"


@dataclass(frozen=True, kw_only=True)
class ExtentView:
    """A run of bytes on a device (by name)."""

    device: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class DeviceView:
    """A device. `role`: 'storage' (labelled) or 'adopted'. `state`: 'ok', or with a `reason` 'missing' (what
    is at its path is not it), 'faulty' (a call on it has failed since it was opened; it is still tried each
    time), 'adding' or 'removing' (that is under way, or is still to be undone or finished; nothing uses it).
    `capacity` is what extents can have of its `size`; `direct`: its blocks go past the page cache;
    `made_for` is the volume it was made for and goes with; `errors` counts I/O errors since it was opened,
    `last_errno` is the last one's (0: none)."""

    name: str
    uuid: str
    path: str
    kind: Literal["file", "block"]
    role: Literal["storage", "adopted"]
    size: int
    capacity: int
    free: int
    sparse: bool
    direct: bool
    made_for: str | None
    volumes: list[str]
    state: Literal["ok", "missing", "faulty", "hung", "adding", "removing"]
    reason: str | None
    errors: int
    last_errno: int
    created: str


@dataclass(frozen=True, kw_only=True)
class LogView:
    """A change log of a volume: `used` is what block maps refer to, `claimed` what its chunks hold; both are
    None while the volume is not served. `default`: used where a snapshot names none."""

    number: int
    default: bool
    devices: list[str]
    size: int
    used: int | None
    claimed: int | None


@dataclass(frozen=True, kw_only=True)
class SpaceView:
    """Use of all change logs of a volume: `free` is what can still be redirected, `rate` the net growth in
    the last minutes in bytes a second, `full_after_s` when they are full at that rate (None: they do not
    grow). `level`: 'low' from 75 % on, 'critical' from 90 %, 'full'."""

    size: int
    used: int
    free: int
    level: Literal["ok", "low", "critical", "full"]
    rate: int
    full_after_s: int | None


@dataclass(frozen=True, kw_only=True)
class DroppedView:
    """A snapshot of `created` that was dropped at `dropped` so that writes went on; `freed` bytes, None where
    nobody knows."""

    snapshot: str
    created: str
    dropped: str
    freed: int | None


@dataclass(frozen=True, kw_only=True)
class EventView:
    """Something that has happened; `volume`: to which one, if to one."""

    time: str
    level: Literal["info", "warning"]
    volume: str | None
    text: str


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
class BadBlockView:
    """A block in a change log that does not match its checksum, found `times` times."""

    partition: int
    block: int
    device: str
    first: str
    last: str
    times: int


@dataclass(frozen=True, kw_only=True)
class ScrubBadView:
    """A block that a scrub could not read back right: why, and which exports see it."""

    partition: int
    block: int
    device: str
    reason: str
    seen_by: list[str]


@dataclass(frozen=True, kw_only=True)
class ScrubView:
    """A scrub. `rate` in bytes a second; `total` is about what there was to read as it began, `done` what was
    read, `skipped` what is on missing devices. `bad_blocks` counts what could not be read back right, `bad`
    lists it (at most 1000). `state`: 'running'; 'done'; 'stopped' (told to); 'failed', with a `reason`."""

    volume: str
    state: ScrubState
    started: str
    rate: int
    total: int
    done: int = 0
    skipped: int = 0
    bad_blocks: int = 0
    bad: list[ScrubBadView] = field(default_factory=list)
    ended: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScrubSettingsView:
    """How scrubs are set: `weekly`: every volume is scrubbed once a week."""

    weekly: bool


@dataclass(frozen=True, kw_only=True)
class HookView:
    """Commands that are run around a cut; `timeout_s` is for both together; `shell`: /bin/sh runs
    them."""

    quiesce: str | None
    thaw: str | None
    timeout_s: int
    shell: bool


@dataclass(frozen=True, kw_only=True)
class SourceView:
    """The snapshot that a clone was made from; `deleted`: it is not there but for its clones."""

    volume: str
    snapshot: str
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class IncompleteRestoreView:
    """A restore that is not complete: of a copy of `snapshot_uuid`, to be named `snapshot`, read from
    `source`; `stream` is the stream's own number, `base` the snapshot that it follows (None: the volume was
    made for it). `connections`: clients that write it now."""

    source: str
    stream: str
    snapshot: str
    snapshot_uuid: str
    base: str | None
    begun: str
    connections: int


@dataclass(frozen=True, kw_only=True)
class RestoreView:
    """A restore that can be written: `export` is the only export of `volume`, known to nobody else (None with
    `dry_run`). `resumed`: some of it may have been written before. `base`: the volume's snapshot that it
    follows."""

    volume: str
    export: str | None
    resumed: bool
    base: str | None


@dataclass(frozen=True, kw_only=True)
class RestoreAbandoned:
    """A restore that has ended incomplete: the volume is what its snapshot `base` shows, or is deleted
    (None)."""

    volume: str
    base: str | None


@dataclass(frozen=True, kw_only=True)
class VolumeView:
    """A volume. `state`: 'serving'; 'degraded' (served, but for what `reason` says); 'not-served' (`reason`
    says why); 'restoring' (`restore` says what; not exported until that is complete); 'creating', 'deleting'
    (being made or given back); 'kept' (deleted, and kept for its clones).
    `source`: what it was made from, if it is a clone. `connections` counts clients of the volume
    and of its snapshots. `when_full`: what gives way when its change logs are full; `space`: their use, None
    while it is not served; `dropped`: the latest snapshots that were dropped for want of space, newest first.
    `bad_blocks` lists those that are known to be bad (at most 128), `last_scrub` is the last one that came to
    its end, `hooks` are run around its cuts. `use` (of the change logs, by whom) only if the volume is asked
    for by name, `partitions` only if asked for."""

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
    source: SourceView | None
    when_full: WhenFull
    logs: list[LogView]
    space: SpaceView | None
    dropped: list[DroppedView]
    exports: list[ExportView]
    connections: int
    snapshots: list[str]
    created: str
    bad_blocks: list[BadBlockView] = field(default_factory=list)
    last_scrub: ScrubView | None = None
    hooks: HookView | None = None
    restore: IncompleteRestoreView | None = None
    use: VolumeUseView | None = None
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
    partitions: list[PartitionView]


@dataclass(frozen=True, kw_only=True)
class VolumeDeleted:
    """A volume that was deleted, with so many snapshots."""

    name: str
    snapshots: int


@dataclass(frozen=True, kw_only=True)
class StallView:
    """How long one processor kept writes waiting."""

    processor: int
    stall_ns: int


@dataclass(frozen=True, kw_only=True)
class PartitionSnapshotView:
    """One partition as it was at the cut; snapshot/snapshot.py says what each means."""

    partition: int
    processor: int
    epoch: int
    write_seq: int
    blocks_mapped: int
    frozen: bool


@dataclass(frozen=True, kw_only=True)
class SnapshotView:
    """A snapshot. `cut` is the same for all snapshots of one cut; `future`: its time lies in the future of
    the clock; `stall_ns` is the longest of the processors' write stalls; `durable_ns` goes from the start
    of the cut until it was flushed; `log_devices` has those of the change log that was named for it, if
    one was. `origin`: made by hand, or by a schedule (whose name is `schedule`, if it is one of
    polyvold's); `holds`: tags that keep it from being deleted. `whole`: the group's snapshot that it is
    part of, '@GROUP@NAME'. `consistency`: whether hooks have made ready for it what an application wrote
    ('application'), or it shows what a power loss would have left ('crash'; `hook_trouble` says why, if
    there were hooks). `copy_of`: the UUID of the snapshot that it was restored from a backup of.
    `clones`: volumes that were made from it. `use`: what it holds, None while the volume is not served,
    and in the answer to its creation."""

    volume: str
    name: str
    export: str
    uuid: str
    cut: str
    epoch: int
    size: int
    log: int | None
    log_devices: list[str]
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
    partitions: list[PartitionSnapshotView] | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotDeleted:
    """A snapshot that was deleted, and how much space that gave back."""

    volume: str
    name: str
    freed: int


@dataclass(frozen=True, kw_only=True)
class DaemonView:
    """The daemon itself. `nbd`: the NBD URIs that it serves."""

    pid: int
    version: str
    state_dir: str
    frontend: str
    nbd: list[str]
    processors: int
    started: str
    uptime_s: float
    connections: int


@dataclass(frozen=True, kw_only=True)
class OperationView:
    """A verb under way: what it does to which volumes, or to which devices, since when, and how many others
    wait for these."""

    what: str
    volumes: list[str]
    devices: list[str]
    since: str
    seconds: float
    waiting: int


@dataclass(frozen=True, kw_only=True)
class StatusView:
    """Everything at a glance, with the latest events, oldest first. `notes`: what is odd, a sentence each.
    `operations`: the verbs under way, the oldest first."""

    daemon: DaemonView
    volumes: list[VolumeView]
    devices: list[DeviceView]
    notes: list[str]
    operations: list[OperationView]
    events: list[EventView]


@dataclass(frozen=True, kw_only=True)
class CheckVolumeView:
    """A volume as a check found it: slots in use, records behind its checkpoints, bytes of slots read and
    checked."""

    name: str
    partitions: int
    snapshots: int
    slots: int = 0
    records: int = 0
    checked: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckView:
    """What a check found: `problems` are wrong, `notes` are what a crash leaves and the next start
    settles."""

    state_dir: str
    problems: list[str]
    notes: list[str]
    volumes: list[CheckVolumeView]
    devices: int


def iso(nanoseconds: int) -> str:
    """An instant (ns since 1970, UTC) as ISO 8601 with microseconds."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return moment.replace(microsecond=nanoseconds % 1_000_000_000 // 1000).isoformat().replace("+00:00", "Z")
