"""What the engine's calls answer with (engine.pyi): dictionaries, whose types are for the reader and mypy.

Sizes and offsets are bytes; *_ns are nanoseconds.
"""

from os import PathLike
from typing import Literal, TypedDict

from polyvol.partition_reports import RecordedCuts


class CutPart(TypedDict):
    """One processor's part in a cut: how long it kept writes waiting, nanoseconds, and how many partitions it
    has cut, by volume."""

    processor: int
    stall_ns: int
    partitions: dict[int, int]


class CutReport(TypedDict):
    """A cut that was made: each volume's epoch, the instant (ns since 1970, UTC), and the write stall."""

    epochs: dict[int, int]
    instant_ns: int
    stall_ns: int
    """The longest of the processors'."""
    processors: list[CutPart]


class LogStats(TypedDict):
    """Use of one log area, bytes: `used_bytes` is what maps refer to, `claimed_bytes` what chunks hold."""

    number: int
    size_bytes: int
    used_bytes: int
    claimed_bytes: int


class BadBlock(TypedDict):
    """A block whose slot does not have its checksum: when it was found first and last (ns since 1970), and
    how often."""

    partition: int
    block: int
    device: int
    first_ns: int
    last_ns: int
    times: int


class BadBlocksStats(TypedDict):
    """`found` counts, by device, how many times a block was found to be bad; `blocks` lists those that are
    bad still, at most 128."""

    found: dict[int, int]
    blocks: list[BadBlock]


class ScrubBad(TypedDict):
    """A block that a scrub could not read back right: `errno` of the read (0: it does not match its
    checksum), and who sees it: the live volume, the snapshots of these epochs."""

    block: int
    device: int
    errno: int
    live: bool
    epochs: list[int]


class ScrubReport(TypedDict):
    """What one call of `scrub` has done: `next` is where to go on (None: that was all); `bytes` were read and
    checked, `skipped_bytes` are on devices that are missing."""

    next: tuple[int, int] | None
    bytes: int
    skipped_bytes: int
    bad: list[ScrubBad]


class SnapshotUse(TypedDict):
    """What a snapshot holds, bytes: `log_bytes` in change logs; of these `only_log_bytes`, and besides
    `only_base_bytes` at base places, are seen by nobody else: deleting it would free them."""

    epoch: int
    log_bytes: int
    only_log_bytes: int
    only_base_bytes: int


class VolumeUse(TypedDict):
    """What the live volume holds in change logs, bytes, and what each snapshot holds, by epoch."""

    live_log_bytes: int
    snapshots: list[SnapshotUse]


class SpaceStats(TypedDict):
    """Use of all log areas of a volume, bytes: `used_bytes` is what maps of the volume and of its snapshots
    refer to; all the rest can be redirected to, perhaps after a sync. `starving`: writes wait for room, in
    the log areas of the numbers `starved_areas`. `checkpoint_errno`: why the last checkpoint of one of its
    processors failed; 0: none has."""

    size_bytes: int
    used_bytes: int
    starving: bool
    starved_areas: list[int]
    checkpoint_errno: int


class DeviceEvent(TypedDict):
    """A device does not answer, or does again."""

    kind: Literal["device-silent", "device-answers"]
    device: int


class EngineEvent(TypedDict):
    """What the engine reports by itself. 'log-full': writes of this volume wait for space in its change
    logs, and there will be none unless somebody makes it; told once until `try_again` or `ask_when_full`.
    'journal-full': the next segment of a journal of this volume could not be made; the newest one is half
    full. 'checkpoint-failed': for the first time, or for another reason than before; it is made again.
    'checkpoint-written': after one that failed."""

    kind: Literal["log-full", "journal-full", "checkpoint-failed", "checkpoint-written"]
    volume: int


class RelocationReport(TypedDict):
    """What a relocation has done: bytes that were moved, batches with blocks that could not be moved, whether
    all was looked at and nothing more can be moved now, and whether hosts were active."""

    bytes: int
    failed: int
    at_end: bool
    hosts: bool


class VolumeStats(TypedDict):
    """Counters of one volume since the engine took it over, and its state. `drops`: of snapshots, by one
    processor each, that have ended."""

    epoch: int
    reads: int
    writes: int
    read_bytes: int
    write_bytes: int
    zeroes: int
    trims: int
    flushes: int
    redirected_blocks: int
    drops: int
    errors: int
    checkpoint_failures: int
    bad_blocks: BadBlocksStats
    connections: int
    logs: list[LogStats]


class ProcessorStats(TypedDict):
    """Counters of one processor since start. Of its `parts`, readers of connections did `reader_parts` on its
    behalf, because it was idle. `cpu_ns`: of its own thread, nanoseconds. `queued`: events in its queue now.
    """

    processor: int
    parts: int
    reader_parts: int
    batches: int
    slow_ios: int
    partitions: int
    cpu_ns: int
    queued: int


class DeviceFaultStats(TypedDict):
    """Why a device is faulty: the call that failed last, where (bytes), and since when and how often calls
    have failed (ns since 1970). `short`: how long it was found and how long it must be (bytes), if so."""

    call: str
    errno: int
    offset: int
    first_ns: int
    last_ns: int
    times: int
    short: tuple[int, int] | None


class DeviceStats(TypedDict):
    """I/O errors of one device since it was opened first, with the last one's errno (0: none); `present`:
    whether its file is there; `fault`: what is wrong with it since it was opened last."""

    device: int
    present: bool
    fault: DeviceFaultStats | None
    silent_s: float | None
    """For how long it has not answered, if it does not."""
    errors: int
    last_errno: int


class EngineStats(TypedDict):
    """Everything that the engine counts."""

    processors: list[ProcessorStats]
    devices: list[DeviceStats]
    connections: int
    handshakes: int


class ExportInfo(TypedDict):
    """One export. `hidden`: it is found by its name alone."""

    name: str
    size: int
    read_only: bool
    hidden: bool
    connections: int


class BlockStatus(TypedDict):
    """A run of bytes with one status."""

    offset: int
    length: int
    hole: bool
    zero: bool


class ConnectionState(TypedDict):
    """A connection that goes on elsewhere: its export, its socket (the caller's to close), for `adopt`."""

    export: str
    fd: int
    state: bytes


class HandOverReport(TypedDict):
    """What came of all connections: `closed` has an export for each whose requests were not answered, or
    whose replies were not taken, in time."""

    connections: list[ConnectionState]
    closed: list[str]


class CheckReport(TypedDict):
    """What `check` has found: `problems`, a sentence each, and how many more; `leftovers`: files that the
    next start removes; `deleted_snapshots`: epochs of snapshots that only an older copy of the catalog has;
    slots that maps refer to, records behind the checkpoints, bytes of slots checked; `processors`: those that
    could be read back, with what they say of cuts."""

    problems: list[str]
    more_problems: int
    leftovers: list[PathLike[str]]
    deleted_snapshots: list[int]
    slots: int
    records: int
    checked_bytes: int
    processors: list[RecordedCuts]


class ClientInfo(TypedDict):
    """One NBD connection. `number` is never used again by this engine; `address` is that of a client on the
    network; `pid` and `uid` are those of a local one: the process that connected, None if it cannot be seen
    from here. `since_ns`: since when this process has the connection, nanoseconds since 1970; bytes
    `received` from it and `sent` to it count from there. `in_flight`: requests that are not answered."""

    number: int
    export: str
    read_only: bool
    address: str | None
    pid: int | None
    uid: int | None
    since_ns: int
    in_flight: int
    received: int
    sent: int


class LogLine(TypedDict):
    """What the engine has to say: `code` is the same in all releases, `text` one sentence without a full
    stop. `volume`, `device`: what it is about, `errno` the system's (0: there was none), `times` how often
    it was said."""

    level: Literal["error", "warning", "info"]
    code: str
    text: str
    volume: int | None
    device: int | None
    errno: int
    times: int


class Group(TypedDict):
    """How many there are of something, and for how long the oldest has been there, right to 250 ms (None:
    there is none, or it is not known)."""

    count: int
    oldest_ms: int | None


class HandedLook(Group):
    """Parts that were handed over. `kind`: 'cold-read', 'job', 'small-write', 'clear', 'look', or 'own' for
    work of the share's own; `place`: 'queued' for a thread, with a thread of the 'pool', or in the
    'ring'."""

    kind: str
    place: str


class ShareLook(TypedDict):
    """What a volume has on a processor (engine/src/processor/inspect.rs). `queued` parts in the processor's
    queue; parts that wait for their `turn`, for others that they `overlap` with, because the limit of their
    kind is reached (`backlog`), for a cut (`held`), for slots (`starved`); `reserved`: in flight, their
    blocks reserved; `given_up`: their requests have failed, and the kernel has them still; snapshots that
    are `settling`. `cut_ms`: for how long a cut has held writes."""

    volume: int | None
    queued: int
    turn: Group
    overlap: Group
    backlog: dict[str, Group]
    held: Group
    starved: Group
    reserved: Group
    given_up: Group
    settling: Group
    in_flight: list[HandedLook]
    cut_ms: int | None
    checkpointing: bool
    leaving: bool
    rolling_back: bool


class ProcessorLook(TypedDict):
    """What a processor is at. `answered`: it has answered in time. `running`: a thread runs it; `sharing`: so
    many do its fast path; `thread` is the number of that thread, or of the last of those, `since_ms` for how
    long it has been at its batch, `own_thread` whether it is the processor's own. `doing`: the event that it
    serves, or has served last, of `doing_volume`. `shares_ms`: how old what is said of its shares is;
    None: it does not answer, and nothing is known of them but their parts in the queue."""

    processor: int
    answered: bool
    running: bool
    sharing: int
    own_thread: bool | None
    thread: int | None
    since_ms: int | None
    doing: str
    doing_volume: int | None
    queued_parts: Group
    queued_others: Group
    shares_ms: int | None
    shares: list[ShareLook]


class FlusherLook(TypedDict):
    """Who waits for a volume's sync: for the next one, and for the one in flight, which has lasted for so
    long (None: there is none). `checkpoint_failures`: of its processors, since it was taken over."""

    volume: int
    waiting: Group
    served: Group
    sync_ms: int | None
    overdue: bool
    checkpoint_failures: int


class LaneLook(TypedDict):
    """What waits for one thing in a pool, and how many threads are at it. `kind`: 'device' or 'probe' (of
    `device`), 'share' or 'files' (of `volume`)."""

    kind: str
    device: int | None
    volume: int | None
    queued: int
    running: int


class PoolLook(TypedDict):
    """A pool of threads."""

    name: str
    threads: int
    idle: int
    lanes: list[LaneLook]


class EngineInspection(TypedDict):
    """What the engine is at. `cutting`: a cut is being made. `memory`: of connections; `limits`: of the
    engine; bytes, numbers, seconds."""

    processors: list[ProcessorLook]
    flushers: list[FlusherLook]
    pools: list[PoolLook]
    cutting: bool
    memory: dict[str, int]
    limits: dict[str, float]
