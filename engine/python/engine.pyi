"""The engine: polyvol's data plane, as Python sees it.
Python decides and calls; the engine moves bytes on its own threads. Every call releases the GIL while it
waits. Sizes and offsets are bytes. Ids of volumes and devices are the catalog's row numbers, which are never
used again. Errors are `EngineError` with one sentence; nothing has changed when a call raises, unless its
text says so.
"""

from collections.abc import Callable
from typing import Literal, Self, TypedDict, final

from polyvol.engine_reports import (
    BadBlock as BadBlock,
    BadBlocksStats as BadBlocksStats,
    BlockStatus as BlockStatus,
    CheckReport as CheckReport,
    ClientInfo as ClientInfo,
    ConnectionState as ConnectionState,
    CutReport as CutReport,
    DeviceEvent as DeviceEvent,
    DeviceFaultStats as DeviceFaultStats,
    DeviceStats as DeviceStats,
    EngineEvent as EngineEvent,
    EngineInspection as EngineInspection,
    EngineStats as EngineStats,
    ExportInfo as ExportInfo,
    Group as Group,
    HandOverReport as HandOverReport,
    LogLine as LogLine,
    LogStats as LogStats,
    ProcessorLook as ProcessorLook,
    ProcessorStats as ProcessorStats,
    RelocationReport as RelocationReport,
    ScrubBad as ScrubBad,
    ScrubReport as ScrubReport,
    ShareLook as ShareLook,
    SnapshotUse as SnapshotUse,
    SpaceStats as SpaceStats,
    VolumeStats as VolumeStats,
    VolumeUse as VolumeUse,
)
from polyvol.partition_reports import (
    ChangeLogCount as ChangeLogCount,
    ChangeLogRun as ChangeLogRun,
    ChangeLogSize as ChangeLogSize,
    ChangeLogState as ChangeLogState,
    Location as Location,
    PartitionSnapshotState as PartitionSnapshotState,
    PartitionState as PartitionState,
    RecordedCut as RecordedCut,
    RecordedCuts as RecordedCuts,
    WriteCounts as WriteCounts,
)

ErrorKind = Literal["not-found", "exists", "busy", "invalid", "corrupt", "io"]

class EngineError(Exception):
    """A call that failed: `kind` for the caller's handling, `errno` (0 where there was none)."""

    kind: ErrorKind
    errno: int

class ExtentSpec(TypedDict):
    """A run of bytes on a device."""

    device: int
    offset: int
    length: int

class PartitionSpec(TypedDict):
    """One partition: its processor, and the extents that hold its bytes, in order, each a multiple of 4096.
    The extents' lengths add up to the partition size (for the last partition: to what is left of the volume).
    """

    processor: int
    extents: list[ExtentSpec]

class LogSpec(TypedDict):
    """One log area of a volume: `number` is its lasting name (1..4095) within the volume's maps.
    `extents` are multiples of 4 MiB in length; slots are handed out from them in order.
    """

    number: int
    extents: list[ExtentSpec]

class LogRule(TypedDict):
    """Which log areas the change logs of some partitions use. The first rule of a list that matches a
    partition is the partition's; one that no rule matches may use any area. When all areas that a rule allows
    are full, writes wait or fail with ENOSPC, although other areas may have room."""

    partitions: tuple[int, int] | None
    """The first and the last partition that it matches; None: all."""
    processors: list[int] | None
    """It matches partitions of these processors; None: of all."""
    logs: list[int]
    """Numbers of log areas, in the order to use."""
    any: bool
    """After those: any other area, by number, beginning with a different one on each processor."""

class SnapshotRules(TypedDict):
    """The log rules for what is written after the snapshot of this epoch (none: the volume's count)."""

    epoch: int
    log_rules: list[LogRule]

class VolumeRules(TypedDict):
    """The log rules of a volume, and of its snapshots; those that are not named keep theirs."""

    log_rules: list[LogRule]
    snapshots: list[SnapshotRules]

class SnapshotSpec(SnapshotRules):
    """A snapshot that exists, and its size in bytes: the volume's at its cut."""

    size: int

class RollbackSpec(TypedDict):
    """A rollback: epochs above `at` go on from what the snapshot of epoch `to` shows. `size` is the volume's
    when it was made, `to_size` the snapshot's, bytes."""

    at: int
    to: int
    size: int
    to_size: int

class SourceSpec(TypedDict):
    """What a clone was made from: the snapshot of this epoch of another volume, served as long."""

    volume: int
    epoch: int

class ManifestsSpec(TypedDict):
    """The manifests of a volume's journals. `directory` is made if missing. The processors of the first
    `partitions` partitions have one; others may. `older`: the volume was served by a version without
    manifests, so each processor has a journal or a checkpoint. What is missing is an error 'corrupt'."""

    directory: str
    partitions: int
    older: bool

class VolumeSpec(TypedDict):
    """A volume as the catalog knows it."""

    id: int
    uuid: str
    name: str
    size: int
    partition_size: int
    partitions: list[PartitionSpec]
    logs: list[LogSpec]
    log_rules: list[LogRule]
    """Which log areas redirected writes use, unless the newest snapshot has rules of its own."""
    directory: str
    """Of journals and checkpoints; its parent must exist. Made if missing and nothing has to be in it."""
    manifests: ManifestsSpec
    snapshots: list[SnapshotSpec]
    rollbacks: list[RollbackSpec]
    """In order."""
    source: SourceSpec | None
    """If it is a clone; then its partitions have no extents."""
    next_epoch: int
    """The catalog's idea of the volume's epoch: no smaller epoch will be used."""

class CutVolume(TypedDict):
    """One volume's part of a cut, with the log rules for what is written after it (none: the volume's)."""

    volume: int
    log_rules: list[LogRule]

@final
class Engine:
    """The data plane. One for each process; `stop` ends its threads and leaves everything durable."""

    def __new__(cls, processors: int) -> Engine:
        """Start with so many processors (1..256)."""

    def grow_processors(self, processors: int) -> None:
        """Have at least so many processors."""

    def open_device(
        self, device: int, path: str, *, sparse: bool = True, direct: bool = False, size: int = 0
    ) -> None:
        """Open a device's file or disk of at least `size` bytes under its id ('invalid' if it is shorter).
        `sparse`: freed space is punched out. `direct`: past the page cache; 'io' where that cannot be."""

    def absent_device(
        self, device: int, *, sparse: bool = True, clean: bool = False, direct: bool = False, size: int = 0
    ) -> None:
        """Have a device that is not there: what touches it fails with EIO. Unless `clean` says that nothing
        ever written to it is in doubt, flushes of its volumes fail too."""

    def reopen_device(self, device: int, path: str) -> None:
        """Change a device to the file at this path, while volumes are in use, and take its marks off; a small
        read and a sync are tried, which may mark it again. 'io' if it cannot be, 'invalid' if too short."""

    def close_device(self, device: int) -> None:
        """Close a device that no volume uses (else EngineError 'busy')."""

    def set_io_timeout(self, timeout_s: float) -> None:
        """Seconds that a request may wait for a device before it fails; 0: any time. 60 unless set."""

    def add_volume(self, spec: VolumeSpec) -> list[int]:
        """Take over a volume: recover its maps from its directory, serve its partitions. Not yet exported.
        Returns the epochs of snapshots in `spec` that the journals say were deleted: the catalog is an older
        copy, and the volume is served without them. 'corrupt' if the directory cannot be read back, or does
        not agree with the snapshots and rollbacks."""

    def grow_volume(self, spec: VolumeSpec) -> None:
        """Have a volume that is served be what this says: larger, by more extents of its last partition and
        more partitions behind it, all else as it is, its snapshots and rollbacks too ('invalid' else). Its
        export shows that to those who connect from now on; a connected client keeps the size that was agreed
        on, and snapshots keep theirs."""

    def rename_volume(self, volume: int, name: str) -> None:
        """Have messages name a volume by this name from now on. Its exports keep the names that they have."""

    def remove_volume(self, volume: int) -> None:
        """Close a volume, durably; it must have no exports left (else 'busy')."""

    def add_log(self, volume: int, log: LogSpec, rules: VolumeRules) -> None:
        """Give a volume one more log area, and these rules, at once, while it is in use. 'exists': it has an
        area of this number; 'not-found': a rule names an area that it does not have."""

    def set_log_rules(self, volume: int, rules: VolumeRules) -> None:
        """Give a volume these rules for what is redirected from now on, in place of those that it has.
        'not-found': a rule names an area that it does not have, or allows none."""

    def relocate(
        self, volume: int, bytes: int, seconds: float, urgent: bool, scattered: tuple[int, bool] | None
    ) -> RelocationReport:
        """Bring blocks of a volume from slots back to their base places, where no version sees these: at most
        so many bytes, for about so long. While hosts are active it moves little and sleeps most of the time,
        unless it is `urgent`.

        With `scattered`, move what snapshots see at the base places to slots instead, and flush, so that the
        blocks can come back: where 512 blocks are in at least so many runs of slots; if the second is true,
        only of blocks that were not written since the newest snapshot. An eighth of the log areas stays free,
        and volumes of which snapshots have log rules of their own are left alone."""

    def ask_when_full(self, volume: int, asks: bool) -> None:
        """Whether writes that find no room in their log areas wait, and raise a 'log-full' event, or fail
        with ENOSPC.
        A volume that was just taken over does not ask. With False, the writes that wait fail."""

    def try_again(self, volume: int) -> None:
        """The answer to a 'log-full' event: room was made. Writes that wait try again; they may ask again."""

    def next_event(self, timeout_s: float) -> EngineEvent | DeviceEvent | None:
        """Wait for an event, at most so long. None: there was none, or the engine stops."""

    def end_events(self) -> None:
        """There are no more events: `next_event` gives None at once, and writes that find no room fail."""

    def space(self, volume: int) -> SpaceStats:
        """Use of a volume's log areas; cheap, asks no processor."""

    def export(self, name: str, description: str, volume: int, epoch: int | None) -> None:
        """Export a volume (epoch None) or its snapshot; it can be connected to at once. 'not-found' if there
        is no such snapshot, 'busy' while a rollback of the volume is half done."""

    def export_hidden(self, name: str, description: str, volume: int) -> None:
        """Export a volume under a hidden name: neither listed, nor what the empty name means."""

    def unexport(self, name: str) -> None:
        """End an export; 'busy' while clients are connected to it. Unknown names are fine."""

    def exports(self) -> list[ExportInfo]:
        """All exports, by name, with the hidden ones."""

    def cut(self, volumes: list[CutVolume]) -> CutReport:
        """Make one cut over these volumes. The epoch it ends is pending: settle, flush, commit or drop."""

    def settle(self, volume: int, epoch: int) -> None:
        """Wait until every write of this epoch's snapshot has landed, and the journals have the cut.
        'invalid' if no cut has ended it; 'io' if a journal has no room: then no snapshot may be committed."""

    def flush(self, volume: int) -> None:
        """Make everything acknowledged so far durable: data first, then records with a commit mark."""

    def drop_snapshot(self, volume: int, epoch: int) -> int:
        """Forget a snapshot (deleted, or never committed) and free what only it could see: bytes freed. What
        is not there is forgotten already. 'busy' if it has an export, or a clone, or one is being made."""

    def drop_snapshots(self, volume: int, epochs: list[int]) -> int:
        """The same for several, with one sync for all: bytes freed."""

    def roll_back(self, volume: int, at: int, to: int) -> None:
        """The catalog says that the volume was rolled back to the snapshot of epoch `to`: do it, whatever the
        size. Writes have gone into epoch `at` until now ('invalid' else); the live volume has no export
        ('busy' else); `to` is a snapshot ('invalid' else).
        'io' if a journal has no room for the record: some processors may have gone back then. It may be
        called again, and `add_volume` does it; until then cuts, exports and growth are 'busy'."""

    def relieve(self, volume: int) -> None:
        """Replace what the volume's journals hold by checkpoints, so that old segments are removed: for a
        'journal-full' event. It needs room for a checkpoint of one processor, and 1 MiB (64 KiB at least);
        'io' where there is less."""

    def renew_missing_files(self, volume: int) -> tuple[list[str], list[str]]:
        """Look whether the files of its journals that a start would read are at their paths; what a file held
        that is gone is written again. Returns two lists of paths: of files that are gone now, while flushes
        fail unless they can write again what the files held; and of files that were gone, and that nothing
        needs any more since the last call. Waits for no device."""

    def cover_rollbacks(self, volume: int) -> None:
        """Write checkpoints if there is a rollback that nothing needs and that they do not cover."""

    def unneeded_rollback(self, volume: int) -> int | None:
        """The `at` of a rollback that may be forgotten, if there is one: no snapshot needs it, and durable
        checkpoints of all processors cover it."""

    def forget_rollback(self, volume: int, at: int) -> int:
        """Forget a rollback that may be forgotten and that the catalog has forgotten: bytes that only it has
        kept, which come back with the next flush. 'busy' for any other; nothing has changed then."""

    def snapshot_use(self, volume: int) -> VolumeUse:
        """What each snapshot of a volume holds, and what deleting it would free."""

    def homeward(self, volume: int) -> tuple[int, int]:
        """Of what the live volume has in change logs, bytes that relocation could bring back to their base
        places now, and bytes more that could go there if no clone had copies of the maps that refer to them.
        Looks at all of these blocks in partitions that were changed since the last call."""

    def partition_snapshots(
        self, volume: int, epoch: int, first: int, count: int
    ) -> list[PartitionSnapshotState]:
        """The partition snapshots of the snapshot of this epoch, by partition number, from partition `first`
        on, at most so many; fewer, or none, if the snapshot has no more. 'not-found': no such snapshot."""

    def partitions(self, volume: int, first: int, count: int) -> list[PartitionState]:
        """The partitions as they are now, by number, from partition `first` on, at most so many."""

    def change_logs(self, volume: int, first: int, count: int, begin: int | None) -> list[ChangeLogState]:
        """The change logs of the partitions from `first` on, so many partitions, by partition and beginning;
        only those that exist, and only those that begin with this epoch (0: with the volume; None: all)."""

    def change_log_counts(self, volume: int) -> list[ChangeLogCount]:
        """How many change logs begin with each epoch, by processor: those that `change_logs` would list. Its
        cost follows the partitions that were written and their frozen maps, not their blocks."""

    def change_log_runs(
        self, volume: int, partition: int, begin: int, first_run: int, count: int
    ) -> tuple[list[ChangeLogRun], int]:
        """The runs of a change log, in the order of its blocks, from number `first_run` on, at most so many;
        and how many it has in all (0: there is no such change log)."""

    def locate(self, volume: int, offset: int, epoch: int | None) -> Location:
        """Where this byte of the volume (None), or of the snapshot of this epoch, is. 'invalid': it is behind
        its end; 'not-found': no such snapshot."""

    def changes(
        self, volume: int, since: int, until: int | None, start: int, extents_max: int
    ) -> tuple[list[tuple[int, int]], int | None]:
        """The extents (offset, length) that changed between the snapshot of epoch `since` and that of `until`
        (None: now), from byte `start` on, in order, at most so many; and where to go on (None: that was all).
        A change is never missed; contents may be equal. 'not-found': no such snapshot."""

    def change_total(self, volume: int, since: int, until: int | None) -> tuple[int, int]:
        """How many extents `changes` has in all, and how many bytes are in them."""

    def scrub(self, volume: int, partition: int, cursor: tuple[int, int], bytes_max: int) -> ScrubReport:
        """Read and check slots of a partition, from `cursor` on ((0, 0): from its start), about `bytes_max`
        bytes at most. Hosts are served in the meantime; slots freed in that time are not reported."""

    def volume_stats(self, volume: int) -> VolumeStats:
        """Counters and use of one volume."""

    def stats(self) -> EngineStats:
        """Counters of the engine."""

    def inspect(self) -> EngineInspection:
        """What the engine's threads are at, and what waits for them; half a second at most, also if some of
        them are stuck."""

    def listen(self, fd: int) -> None:
        """Serve NBD on a listening stream socket; the engine takes the descriptor over."""

    def clients(self) -> list[ClientInfo]:
        """All connections of NBD clients, by number. Handles (`open`) are not among them."""

    def disconnect_client(self, number: int) -> bool:
        """Close the connection of this number, and wait until it has ended, at most 4 seconds. False if there
        is none."""

    def disconnect(self, export: str) -> None:
        """Close all connections to an export, and wait until they have ended, at most 4 seconds."""

    def hand_over(self) -> HandOverReport:
        """Stop accepting, have every request that was read answered, and take all connections out,
        for another process. Takes as long as the slowest, at most 13 s. Everything but NBD is served on."""

    def adopt(self, fd: int, export: str, state: bytes) -> None:
        """Continue a connection that another engine has handed over; the descriptor is taken over in any
        case. The caller knows that the export is the one that it was connected to.
        'invalid' (the state cannot be used), 'not-found' or 'busy': then it is closed."""

    def open(self, export: str) -> Handle:
        """A way to do I/O on an export from this process; counts as a connection."""
    def stop(self) -> None:
        """Close connections, make everything durable, write checkpoints, end the threads. Idempotent.
        Afterwards every other call raises 'invalid'."""

@final
class Handle:
    """I/O on one export from Python: for tests and the nbdkit plugin. Thread-safe; each call blocks. Errors
    are OSError with the errno that a host would see."""

    @property
    def size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    def traffic(self) -> tuple[int, int, int]:
        """Calls under way, bytes written to the export, bytes read from it. All calls but this one and
        `close` fail with ESHUTDOWN once the handle is closed."""

    def pread(self, length: int, offset: int) -> bytes: ...
    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None: ...
    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None: ...
    def zero(
        self, length: int, offset: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False
    ) -> None: ...
    def trim(self, length: int, offset: int, *, fua: bool = False) -> None: ...
    def flush(self) -> None: ...
    def cache(self, length: int, offset: int) -> None: ...
    def block_status(self, length: int, offset: int) -> list[BlockStatus]: ...
    def close(self) -> None: ...

@final
class RaisesReturned:
    """A callable that calls `function`. If that returns an exception, it is raised without a traceback.

    It is for a caller that never frees what was raised, as nbdkit's Python plugin: one exception can be
    raised any number of times, and nothing is allocated for it. A Python function that raises adds a
    traceback, which holds its frame."""

    def __new__(cls, function: Callable[..., object]) -> Self: ...
    def __call__(self, *args: object) -> object: ...

def check(spec: VolumeSpec, devices: dict[int, str], *, data: bool = False) -> CheckReport:
    """Check a volume that is not served: its journals, checkpoints and log areas; with `data` the contents
    of all slots on `devices` (id to path). Changes nothing."""

def next_log_lines(timeout_s: float) -> tuple[list[LogLine], int]:
    """Take out what the engines of this process have to say, and how many lines were dropped since the last
    call because there were too many; wait for a line, at most so long."""

def wake_log_readers() -> None:
    """Have all calls of `next_log_lines` that wait return."""

__version__: str
__profile__: str
"""Of cargo: release or debug."""
__rustc__: str
"""The version of the compiler."""
