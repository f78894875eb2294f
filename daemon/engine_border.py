"""The border to the engine: its interface as the daemon uses it, as protocols.

How it works      `polyvol.engine` satisfies `EngineModule`, and so does tests/support/sim_engine.py; mypy
                  checks both. engine/python/engine.pyi says what each call does. Only `load_engine` imports
                  it, so that the command line and the API never do.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from polyvol.daemon.errors import engine_errors
from polyvol.snapshot.coordinator import CutEngine

if TYPE_CHECKING:
    from polyvol.engine import (
        BlockStatus,
        ChangeLogCount,
        ChangeLogRun,
        ChangeLogState,
        CheckReport,
        ClientInfo,
        DeviceEvent,
        EngineEvent,
        EngineInspection,
        EngineStats,
        ExportInfo,
        HandOverReport,
        Location,
        LogLine,
        LogSpec,
        PartitionSnapshotState,
        PartitionState,
        RelocationReport,
        ScrubReport,
        SpaceStats,
        VolumeRules,
        VolumeSpec,
        VolumeStats,
        VolumeUse,
    )


class HandleLike(Protocol):
    """I/O on one export from this process."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool:
        """Whether it is a snapshot's."""

    def traffic(self) -> tuple[int, int, int]:
        """Calls under way, bytes written, bytes read."""

    def pread(self, length: int, offset: int) -> bytes:
        """Read."""

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Read into a buffer."""

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None:
        """Write."""

    def zero(
        self, length: int, offset: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False
    ) -> None:
        """Make zeros."""

    def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        """Give space back."""

    def flush(self) -> None:
        """Make everything acknowledged durable."""

    def cache(self, length: int, offset: int) -> None:
        """Read ahead."""

    def block_status(self, length: int, offset: int) -> "Sequence[BlockStatus]":
        """What is a hole, what reads as zeros."""

    def close(self) -> None:
        """End it; idempotent."""


class EngineLike(CutEngine, Protocol):
    """The engine, as far as the daemon uses it."""

    def grow_processors(self, processors: int) -> None:
        """Have at least so many processors."""

    def open_device(
        self, device: int, path: str, *, sparse: bool = True, direct: bool = False, size: int = 0
    ) -> None:
        """Open a device under its id; an error unless it has at least `size` bytes."""

    def absent_device(
        self, device: int, *, sparse: bool = True, clean: bool = False, direct: bool = False, size: int = 0
    ) -> None:
        """Add a device whose file or disk is absent."""

    def reopen_device(self, device: int, path: str) -> None:
        """Reopen a device, while it is in use."""

    def close_device(self, device: int) -> None:
        """Close a device that no volume uses."""

    def set_io_timeout(self, timeout_s: float) -> None:
        """How long a request may wait for a device, seconds; 0: without limit."""

    def add_volume(self, spec: "VolumeSpec") -> list[int]:
        """Take over a volume."""

    def grow_volume(self, spec: "VolumeSpec") -> None:
        """Grow a volume to this specification."""

    def rename_volume(self, volume: int, name: str) -> None:
        """Have messages name a volume by this name."""

    def remove_volume(self, volume: int) -> None:
        """Close a volume, durably."""

    def add_log(self, volume: int, log: "LogSpec", rules: "VolumeRules") -> None:
        """Give a volume one more log area, and these log rules."""

    def set_log_rules(self, volume: int, rules: "VolumeRules") -> None:
        """Give a volume these log rules."""

    def relocate(
        self, volume: int, bytes: int, seconds: float, urgent: bool, scattered: tuple[int, bool] | None
    ) -> "RelocationReport":
        """Bring blocks of a volume from slots back to their base places, or move away what snapshots see
        there, within bounds."""

    def ask_when_full(self, volume: int, asks: bool) -> None:
        """Whether writes without free space wait and raise an event, or fail."""

    def try_again(self, volume: int) -> None:
        """Answer a 'log-full' event: whether space was freed."""

    def next_event(self, timeout_s: float) -> "EngineEvent | DeviceEvent | None":
        """Wait for an event."""

    def end_events(self) -> None:
        """End the events; threads that wait for one return."""

    def space(self, volume: int) -> "SpaceStats":
        """Use of a volume's log areas."""

    def drop_snapshots(self, volume: int, epochs: list[int]) -> int:
        """Forget several epochs; bytes freed."""

    def clients(self) -> "Sequence[ClientInfo]":
        """All connections of NBD clients, by number."""

    def disconnect_client(self, number: int) -> bool:
        """Close one; False if there is none."""

    def disconnect(self, export: str) -> None:
        """Close all connections to an export."""

    def relieve(self, volume: int) -> None:
        """Replace what a volume's journals hold by checkpoints, also where there is little room."""

    def renew_missing_files(self, volume: int) -> tuple[list[str], list[str]]:
        """The files of its journals that are gone, and those that were gone and are not needed any more."""

    def cover_rollbacks(self, volume: int) -> None:
        """Write checkpoints if that lets a rollback be forgotten."""

    def unneeded_rollback(self, volume: int) -> int | None:
        """The `at` of a rollback that may be forgotten."""

    def forget_rollback(self, volume: int, at: int) -> int:
        """Forget it; bytes freed."""

    def snapshot_use(self, volume: int) -> "VolumeUse":
        """What the live volume and each snapshot hold."""

    def homeward(self, volume: int) -> tuple[int, int]:
        """Bytes of the live volume in change logs that can be relocated, and those that clones pin."""

    def export_hidden(self, name: str, description: str, volume: int) -> None:
        """Export a volume under a secret name, hidden from lists."""

    def exports(self) -> "Sequence[ExportInfo]":
        """All exports, by name."""

    def partition_snapshots(
        self, volume: int, epoch: int, first: int, count: int
    ) -> "Sequence[PartitionSnapshotState]":
        """Some partition snapshots of a snapshot."""

    def partitions(self, volume: int, first: int, count: int) -> "Sequence[PartitionState]":
        """Some partitions, as they are now."""

    def change_logs(
        self, volume: int, first: int, count: int, begin: int | None
    ) -> "Sequence[ChangeLogState]":
        """The change logs of some partitions; all, or those that begin with this epoch."""

    def change_log_counts(self, volume: int) -> "Sequence[ChangeLogCount]":
        """How many change logs begin with each epoch."""

    def change_log_runs(
        self, volume: int, partition: int, begin: int, first_run: int, count: int
    ) -> "tuple[list[ChangeLogRun], int]":
        """Some runs of a change log, and how many it has."""

    def locate(self, volume: int, offset: int, epoch: int | None) -> "Location":
        """Where a byte is."""

    def changes(
        self, volume: int, since: int, until: int | None, start: int, extents_max: int
    ) -> tuple[list[tuple[int, int]], int | None]:
        """A page of the extents that changed between two snapshots, or one and now; where the next begins."""

    def change_total(self, volume: int, since: int, until: int | None) -> tuple[int, int]:
        """The number of these extents, and of the bytes in them."""

    def scrub(self, volume: int, partition: int, cursor: tuple[int, int], bytes_max: int) -> "ScrubReport":
        """Read and check slots of a partition."""

    def volume_stats(self, volume: int) -> "VolumeStats":
        """One volume's counters."""

    def stats(self) -> "EngineStats":
        """The engine's counters."""

    def inspect(self) -> "EngineInspection":
        """What its threads are doing, and what waits for them."""

    def listen(self, fd: int) -> None:
        """Serve NBD on a listening socket."""

    def hand_over(self) -> "HandOverReport":
        """Export the state of all connections, for another process."""

    def adopt(self, fd: int, export: str, state: bytes) -> None:
        """Resume a connection of another process."""

    def open(self, export: str) -> HandleLike:
        """I/O on an export from this process."""

    def stop(self) -> None:
        """End; idempotent."""


NEVER_WAIT = frozenset(
    {
        "grow_processors",
        "rename_volume",
        "absent_device",
        "ask_when_full",
        "try_again",
        "next_event",
        "end_events",
        "space",
        "exports",
        "volume_stats",
        "stats",
        "inspect",
    }
)
"""The calls that never wait for a device. All others may, for ever if it hangs."""


class _Guarded:
    """An engine whose calls that may wait for a device say so first."""

    def __init__(self, engine: EngineLike, may_wait: Callable[[str], None]) -> None:
        self._engine = engine
        self._may_wait = may_wait

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the engine has
        if name not in NEVER_WAIT:
            self._may_wait(f"the engine's {name}")
        return getattr(self._engine, name)


def guarded(engine: EngineLike, may_wait: Callable[[str], None]) -> EngineLike:
    """The engine, with `may_wait` called with the name of each call that may wait for a device."""
    return cast(EngineLike, _Guarded(engine, may_wait))


class EngineFactory(Protocol):
    """Starts an engine."""

    def __call__(self, processors: int) -> EngineLike:
        """An engine with so many processors."""


class CheckLike(Protocol):
    """Checks a volume that nobody serves."""

    def __call__(self, spec: "VolumeSpec", devices: dict[int, str], *, data: bool = False) -> "CheckReport":
        """What is wrong with it; nothing is changed."""


class EngineModule(Protocol):
    """The engine's module: how to start one, what it raises, its version."""

    @property
    def Engine(self) -> EngineFactory:  # noqa: N802 - the module's own name for it
        """Starts an engine."""

    @property
    def check(self) -> CheckLike:
        """Checks a volume that nobody serves."""

    @property
    def EngineError(self) -> type[Exception]:  # noqa: N802 - the module's own name for it
        """The exception that its calls raise, with `kind` and `errno`."""

    def next_log_lines(self, timeout_s: float) -> "tuple[list[LogLine], int]":
        """Log lines of its engines, and how many were dropped."""

    def wake_log_readers(self) -> None:
        """Have all calls of `next_log_lines` return."""

    @property
    def __version__(self) -> str: ...


def load_engine() -> EngineModule:
    """The real engine."""
    from polyvol import engine

    return engine


def start_engine(module: EngineModule, processors: int) -> EngineLike:
    """A new engine; EngineFailed."""
    with engine_errors(
        f"starting the engine with {processors} processors", module.EngineError, starting=True
    ):
        return module.Engine(processors)
