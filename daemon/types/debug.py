"""Debug: what processors, threads and locks are at. Ages are milliseconds, those of parts right to 250 ms."""

from dataclasses import dataclass, field
from typing import Any

from polyvol.daemon.types.clients import ClientView
from polyvol.daemon.types.status import StatusView


@dataclass(frozen=True, kw_only=True)
class CountView:
    """How many there are of something, and for how long the oldest has been there (None: there is none, or it
    is not known)."""

    count: int
    oldest_ms: int | None


@dataclass(frozen=True, kw_only=True)
class InFlightView:
    """Parts of one kind that were handed over. `kind`: 'cold-read', 'small-write', 'job' (another read or
    write), 'clear', 'look', or 'own' for work that no client asked for. `place`: 'queued' for a thread,
    with a thread of the 'pool', or in the 'ring', where the kernel has them."""

    kind: str
    place: str
    count: int
    oldest_ms: int | None


@dataclass(frozen=True, kw_only=True)
class ShareDebugView:
    """What a volume has on a processor: parts in the processor's queue (`queued`); that wait for their
    `turn`, for others that they `overlap` with, in the `backlog` (by kind) because its limit is reached,
    for a cut (`held`), for slots (`starved`). `reserved`: in flight, their blocks reserved. `given_up`:
    their requests have failed, and the kernel has them still. `settling`: snapshots that wait for its
    writes. `cut_ms`: for how long a cut has held its writes. `volume` None: a volume that has just come or
    gone."""

    volume: str | None
    queued: int
    turn: CountView
    overlap: CountView
    backlog: dict[str, CountView]
    held: CountView
    starved: CountView
    reserved: CountView
    in_flight: list[InFlightView]
    given_up: CountView
    settling: CountView
    cut_ms: int | None
    checkpointing: bool
    leaving: bool
    rolling_back: bool


@dataclass(frozen=True, kw_only=True)
class ProcessorDebugView:
    """A processor. `answered`: it has answered within half a second. `running`: a thread runs it; `sharing`:
    so many do its fast path. `thread`: that thread, or the last of those; `own_thread`: whether it is the
    processor's own. `since_ms`: for how long it has been at its present work; `doing` (of volume
    `doing_volume`) what that is, or what it did last. `shares_ms`: how old `shares` are; None: it does not
    answer, and only what is in its queue is known of them."""

    processor: int
    answered: bool
    running: bool
    sharing: int
    own_thread: bool | None
    thread: int | None
    thread_name: str | None
    since_ms: int | None
    doing: str
    doing_volume: str | None
    queued_parts: CountView
    queued_others: CountView
    shares_ms: int | None
    shares: list[ShareDebugView]


@dataclass(frozen=True, kw_only=True)
class ProcessorsView:
    """All processors. `cutting`: a cut is being made."""

    cutting: bool
    processors: list[ProcessorDebugView]


@dataclass(frozen=True, kw_only=True)
class ThreadView:
    """A thread: its number and name, its state and where the kernel waits in it ('stat', 'wchan' and 'stack'
    of proc(5), as far as they can be read), and its Python frames, outermost first, if it has any."""

    thread: int
    name: str
    state: str
    cpu_ticks: int | None
    wchan: str | None
    kernel_stack: list[str]
    python_name: str | None = None
    frames: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LockView:
    """A lock that is held: 'group', 'volume', 'device' or 'catalog', whose, for what, for how long, by which
    thread, and how many wait."""

    noun: str
    names: list[str]
    what: str
    seconds: float
    waiting: int
    thread: int | None


@dataclass(frozen=True, kw_only=True)
class DumpView:
    """All of it. What could not be found out in time is None or empty, and `problems` has a sentence of it.
    `engine`: its pools, flushers, memory and limits; `descriptors`: open ones by kind; `process`: of the
    process and the machine."""

    time: str
    problems: list[str]
    status: StatusView | None
    processors: ProcessorsView | None
    engine: dict[str, Any] | None
    threads: list[ThreadView]
    locks: list[LockView]
    connections: list[ClientView]
    exports: list[dict[str, Any]]
    descriptors: dict[str, int]
    process: dict[str, str]
