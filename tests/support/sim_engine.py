"""The sim engine: the engine's twin for tests, in memory, without threads and without NBD.

How it works      A `SimWorld` stands for the module `polyvol.engine`: it has Engine, EngineError and
                  __version__. What a real engine would leave on its devices and in its journals lives in the
                  world, so that a new Engine finds it again, as after a kill. Bytes that were never written
                  are read from the device's file, as from a base. Calls are noted in `world.calls`;
                  `world.fail` makes them fail.
Invariants        It is at least as strict as the contract in engine/python/engine.pyi: what that does not
                  allow raises here, so that a daemon that passes with it does not lean on leniency.
"""

import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.sim_changes import Comparisons
from tests.support.sim_checks import BLOCK, EngineError, check, check_rules, check_spec
from tests.support.sim_clones import block_of, check_source, refuse_source
from tests.support.sim_debug import SimInspection, SimLog
from tests.support.sim_devices import ABSENT, SimDevices
from tests.support.sim_growth import SimGrowth, apply_rollbacks, size_of
from tests.support.sim_partitions import SimMaps, SimPartitions

if TYPE_CHECKING:
    from polyvol.daemon.engine_border import CheckLike
    from polyvol.engine import (
        BadBlock,
        BlockStatus,
        ClientInfo,
        CutReport,
        CutVolume,
        DeviceEvent,
        DeviceFaultStats,
        EngineEvent,
        EngineStats,
        ExportInfo,
        HandOverReport,
        LogStats,
        RelocationReport,
        ScrubReport,
        SpaceStats,
        VolumeSpec,
        VolumeStats,
    )


HUNG_S = 60.0
"""How long a call hangs that no test lets go on."""


@dataclass
class _Volume:
    spec: "VolumeSpec"
    stored: SimMaps
    logs: dict[int, int]


@dataclass
class _Export:
    volume: int
    epoch: int | None
    connections: int = 0
    hidden: bool = False


class SimWorld(SimLog):
    """Everything that outlives an engine, and the module that makes engines."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, SimMaps] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, int] = {}
        """Call name -> how many calls of it still succeed before one fails (and all later ones)."""
        self.faults: dict[int, DeviceFaultStats] = {}
        self.silent: dict[int, float] = {}
        """Devices that are faulty, by id."""
        self.bad_blocks: dict[int, list[BadBlock]] = {}
        """Blocks that do not match their checksums, by volume."""
        self.scrubs: dict[tuple[int, int], ScrubReport] = {}
        """What scrubs report, by volume and partition; nothing where nothing is said."""
        self.stays_faulty: set[int] = set()
        """Devices that are faulty again as soon as they are reopened."""
        self.starved_areas: dict[int, list[int]] = {}
        """Numbers of the areas that such writes may use, by volume; all, where nothing is said."""
        self.relocatable: dict[int, int] = {}
        """Bytes that can be brought back to their base places, by volume."""
        self.live: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        """Bytes that the volume itself has in change logs, and those of them that clones pin, by volume."""
        self.scattered: dict[int, int] = {}
        """Bytes that can be after what snapshots see there has moved away, by volume."""
        self.starving: set[int] = set()
        """Volumes with writes that wait for room."""
        self.hold: dict[str, threading.Event] = {}
        """Call name -> an event that the call waits for, as for a slow disk."""
        self.hang: dict[tuple[str, object], threading.Event] = {}
        """Call name and first argument -> an event that such a call waits for, as for a device that hangs."""
        self.unneeded: dict[int, list[int]] = {}
        """The rollbacks that may be forgotten, by volume."""
        self.clock: Callable[[], int] = time.time_ns
        """The instant of a cut."""

    @property
    def EngineError(self) -> type[Exception]:  # noqa: N802 - the module's name
        """The error class."""
        return EngineError

    @property
    def check(self) -> "CheckLike":
        """There is nothing on a disk that could be checked."""
        raise NotImplementedError

    @property
    def Engine(self) -> "Callable[[int], SimEngine]":  # noqa: N802 - the module's name
        """Makes an engine."""
        return lambda processors: SimEngine(self, processors)

    @property
    def __version__(self) -> str:
        return "0.0-sim"

    def names(self) -> list[str]:
        """The names of the calls, in order."""
        return [str(call[0]) for call in self.calls]

    def called(self, name: str, *arguments: object) -> None:
        """Note a call; wait or fail if that was asked for."""
        self.calls.append((name, *arguments))
        if name in self.hold:
            self.hold[name].wait(10)
        hung = self.hang.get((name, arguments[0])) if arguments else None
        if hung is not None:
            hung.wait(HUNG_S)
        if name in self.fail:
            if self.fail[name] == 0:
                raise EngineError("io", f"simulated failure of {name}", errno.EIO)
            self.fail[name] -= 1


class SimEngine(SimDevices, SimGrowth, SimInspection, SimPartitions, Comparisons):
    """As polyvol.engine.Engine."""

    def __init__(self, world: SimWorld, processors: int) -> None:
        check(1 <= processors <= 256, "invalid", f"{processors} processors")
        self.world = world
        self.processors = processors
        self.devices: dict[int, int] = {}
        self.direct: set[int] = set()
        self.volumes: dict[int, _Volume] = {}
        self._exports: dict[str, _Export] = {}
        self._listeners: list[socket.socket] = []
        self.events: queue.Queue[EngineEvent | DeviceEvent | None] = queue.Queue()
        self._lock = threading.RLock()
        self._stopped = False

    def _begin(self, name: str, *arguments: object) -> None:
        check(not self._stopped, "invalid", "the engine has stopped")
        self.world.called(name, *arguments)

    def set_io_timeout(self, timeout_s: float) -> None:
        self._begin("set_io_timeout", timeout_s)

    def grow_processors(self, processors: int) -> None:
        self._begin("grow_processors", processors)
        check(1 <= processors <= 256, "invalid", f"{processors} processors")
        self.processors = max(self.processors, processors)

    def add_volume(self, spec: "VolumeSpec") -> list[int]:
        self._begin("add_volume", spec["id"])
        check(spec["id"] not in self.volumes, "exists", f"volume {spec['id']} is there")
        check(os.path.isdir(os.path.dirname(spec["directory"])), "io", "no parent directory")  # noqa: PTH112, PTH120
        check_spec(spec, self.processors, set(self.devices))
        check_source(self, spec)
        os.makedirs(spec["directory"], exist_ok=True)  # noqa: PTH103
        stored = self.world.stored.setdefault(spec["uuid"], SimMaps())
        epochs = {each["epoch"] for each in spec["snapshots"]} | {each["to"] for each in spec["rollbacks"]}
        check(epochs <= stored.snapshots.keys(), "corrupt", "a snapshot is not in the journal")
        stored.keep_only(epochs)
        stored.epoch = max(stored.epoch, spec["next_epoch"])
        apply_rollbacks(stored, spec)
        logs = {log["number"]: sum(part["length"] for part in log["extents"]) for log in spec["logs"]}
        self.volumes[spec["id"]] = _Volume(spec, stored, logs)
        return []

    def rename_volume(self, volume: int, name: str) -> None:
        self._begin("rename_volume", volume, name)
        self._volume(volume).spec["name"] = name

    def remove_volume(self, volume: int) -> None:
        self._begin("remove_volume", volume)
        self._volume(volume)
        for export in self._exports.values():
            check(export.volume != volume, "busy", f"volume {volume} is exported")
        refuse_source(self, volume, None)
        del self.volumes[volume]

    def relocate(
        self, volume: int, bytes: int, seconds: float, urgent: bool, scattered: tuple[int, bool] | None
    ) -> "RelocationReport":
        self._volume(volume)  # it is no call of a verb: the worker makes it at any time
        known = self.world.relocatable if scattered is None else self.world.scattered
        moved = min(-(-bytes // BLOCK) * BLOCK, known.get(volume, 0))
        known[volume] = known.get(volume, 0) - moved
        if scattered is not None:
            self.world.relocatable[volume] = self.world.relocatable.get(volume, 0) + moved
        return {"bytes": moved, "failed": 0, "at_end": moved == 0, "hosts": False}

    def ask_when_full(self, volume: int, asks: bool) -> None:
        self._begin("ask_when_full", volume, asks)
        self._volume(volume)

    def try_again(self, volume: int) -> None:
        self._begin("try_again", volume)
        self._volume(volume)

    def next_event(self, timeout_s: float) -> "EngineEvent | DeviceEvent | None":
        try:
            return self.events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def end_events(self) -> None:
        self.events.put(None)

    def space(self, volume: int) -> "SpaceStats":
        size = sum(self._volume(volume).logs.values())
        used = self.world.used.get(volume, 0)
        return {
            "size_bytes": size,
            "used_bytes": used,
            "starving": volume in self.world.starving,
            "starved_areas": self.world.starved_areas.get(volume, list(self._volume(volume).logs)),
            "checkpoint_errno": self.world.checkpoint_errno.get(volume, 0),
        }

    def export(self, name: str, description: str, volume: int, epoch: int | None) -> None:
        self._begin("export", name)
        target = self._volume(volume)
        check(name not in self._exports, "exists", f"export {name} exists already")
        check(epoch is None or epoch in target.stored.snapshots, "not-found", f"no epoch {epoch}")
        with self._lock:
            self._exports[name] = _Export(volume, epoch)

    def export_hidden(self, name: str, description: str, volume: int) -> None:
        self._begin("export_hidden", name)
        self._volume(volume)
        check(name not in self._exports, "exists", f"export {name} exists already")
        with self._lock:
            self._exports[name] = _Export(volume, None, hidden=True)

    def unexport(self, name: str) -> None:
        self._begin("unexport", name)
        with self._lock:
            export = self._exports.get(name)
            check(export is None or export.connections == 0, "busy", f"export {name} is in use")
            self._exports.pop(name, None)

    def exports(self) -> "list[ExportInfo]":
        with self._lock:
            return [
                {
                    "name": name,
                    "size": size_of(self.volumes[export.volume].spec, export.epoch),
                    "read_only": export.epoch is not None,
                    "hidden": export.hidden,
                    "connections": export.connections,
                }
                for name, export in sorted(self._exports.items())
            ]

    def cut(self, volumes: "list[CutVolume]") -> "CutReport":
        self._begin("cut", tuple(each["volume"] for each in volumes), [each["log_rules"] for each in volumes])
        epochs = {}
        for each in volumes:
            target = self._volume(each["volume"])
            check_rules(each["log_rules"], target.logs)
        for each in volumes:
            epochs[each["volume"]] = self._volume(each["volume"]).stored.cut()
        return {
            "epochs": epochs,
            "instant_ns": self.world.clock(),
            "stall_ns": 2000,
            "processors": [
                {"processor": number, "stall_ns": 2000 - number, "partitions": self._cut(number, volumes)}
                for number in range(self.processors)
            ],
        }

    def _cut(self, processor: int, volumes: "list[CutVolume]") -> dict[int, int]:
        counts: dict[int, int] = {}
        for number in (each["volume"] for each in volumes):
            parts = self._volume(number).spec["partitions"]
            if count := sum(part["processor"] == processor for part in parts):
                counts[number] = count
        return counts

    def settle(self, volume: int, epoch: int) -> None:
        self._begin("settle", volume, epoch)
        self._snapshot(volume, epoch)

    def flush(self, volume: int) -> None:
        self._begin("flush", volume)
        self._volume(volume)

    def drop_snapshot(self, volume: int, epoch: int) -> int:
        self._begin("drop_snapshot", volume, epoch)
        blocks = self._snapshot(volume, epoch)
        for export in self._exports.values():
            check((export.volume, export.epoch) != (volume, epoch), "busy", "the snapshot is exported")
        refuse_source(self, volume, epoch)
        self._volume(volume).stored.drop(epoch)
        return len(blocks) * BLOCK

    def scrub(self, volume: int, partition: int, cursor: tuple[int, int], bytes_max: int) -> "ScrubReport":
        self._begin("scrub", volume, partition, cursor)
        spec = self._volume(volume).spec
        check(partition < len(spec["partitions"]), "not-found", f"no partition {partition}")
        check(bytes_max > 0, "invalid", "nothing is to be read")
        clean: ScrubReport = {"next": None, "bytes": BLOCK, "skipped_bytes": 0, "bad": []}
        return self.world.scrubs.get((volume, partition), clean)

    def volume_stats(self, volume: int) -> "VolumeStats":
        target = self._volume(volume)
        used = self.world.used.get(volume, 0)
        logs: list[LogStats] = []
        for number, size in target.logs.items():
            logs.append(
                {"number": number, "size_bytes": size, "used_bytes": min(size, used), "claimed_bytes": size}
            )
            used -= min(size, used)
        connections = sum(each.connections for each in self._exports.values() if each.volume == volume)
        return {
            "epoch": target.stored.epoch,
            "reads": 0,
            "writes": sum(each.writes for each in target.stored.counts.values()),
            "read_bytes": 0,
            "write_bytes": sum(each.written for each in target.stored.counts.values()),
            "zeroes": 0,
            "trims": 0,
            "flushes": 0,
            "redirected_blocks": 0,
            "drops": target.stored.drops,
            "errors": 0,
            "checkpoint_failures": 0,
            "bad_blocks": {"found": {}, "blocks": list(self.world.bad_blocks.get(volume, []))},
            "connections": connections,
            "logs": logs,
        }

    def stats(self) -> "EngineStats":
        return {
            "processors": self.processor_stats(),
            "devices": [
                {
                    "device": device,
                    "present": fd != ABSENT,
                    "errors": 0,
                    "last_errno": 0,
                    "fault": self.world.faults.get(device),
                    "silent_s": self.world.silent.get(device),
                }
                for device, fd in self.devices.items()
            ],
            "connections": sum(export.connections for export in self._exports.values()),
            "handshakes": 0,
        }

    def clients(self) -> "list[ClientInfo]":
        return []  # it serves no NBD

    def disconnect_client(self, number: int) -> bool:
        return False

    def listen(self, fd: int) -> None:
        self._begin("listen")
        self._listeners.append(socket.socket(fileno=fd))

    def hand_over(self) -> "HandOverReport":
        self._begin("hand-over")
        return {"connections": [], "closed": []}

    def adopt(self, fd: int, export: str, state: bytes) -> None:
        self._begin("adopt", export)
        os.close(fd)
        check(state != b"", "invalid", "the state is not whole")

    def open(self, export: str) -> "SimHandle":
        self._begin("open", export)
        with self._lock:
            found = self._exports.get(export)
            check(found is not None, "not-found", f"no export {export}")
            assert found is not None
            found.connections += 1
        return SimHandle(self, found)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for listener in self._listeners:
            listener.close()
        for fd in self.devices.values():
            self._close(fd)
        self.world.called("stop")

    def _volume(self, volume: int) -> _Volume:
        check(volume in self.volumes, "not-found", f"no volume {volume}")
        return self.volumes[volume]

    def _snapshot(self, volume: int, epoch: int) -> dict[int, bytes]:
        stored = self._volume(volume).stored
        check(epoch in stored.snapshots, "not-found", f"no epoch {epoch}")
        return stored.snapshots[epoch]


class SimHandle:
    """As polyvol.engine.Handle."""

    def __init__(self, engine: SimEngine, export: _Export) -> None:
        self._engine = engine
        self._export = export
        self._volume = engine.volumes[export.volume]
        self._closed = False

    @property
    def size(self) -> int:
        return self._volume.spec["size"]

    @property
    def read_only(self) -> bool:
        return self._export.epoch is not None

    def traffic(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def pread(self, length: int, offset: int) -> bytes:
        self._check(length, offset, write=False)
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = b"".join(self._block(block) for block in range(first, last))
        return data[offset - first * BLOCK :][:length]

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        buffer[:] = self.pread(len(buffer), offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None:
        self._check(len(data), offset, write=True)
        at = 0
        while at < len(data):
            block, within = divmod(offset + at, BLOCK)
            piece = bytes(data[at : at + BLOCK - within])
            old = self._block(block)
            new = old[:within] + piece + old[within + len(piece) :]
            stored, spec = self._volume.stored, self._volume.spec
            stored.put(block, new, clone=spec["source"] is not None)
            stored.note(block * BLOCK // spec["partition_size"], len(piece), self._engine.world.clock())
            at += len(piece)

    def zero(
        self, length: int, offset: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False
    ) -> None:
        self.pwrite(bytes(length), offset, fua=fua)

    def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        self.pwrite(bytes(length), offset, fua=fua)

    def flush(self) -> None:
        self._check(0, 0, write=False)

    def cache(self, length: int, offset: int) -> None:
        self._check(length, offset, write=False)

    def block_status(self, length: int, offset: int) -> "list[BlockStatus]":
        self._check(length, offset, write=False)
        return [{"offset": offset, "length": length, "hole": False, "zero": False}]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._export.connections -= 1

    def _block(self, block: int) -> bytes:
        return block_of(self._engine, self._export.volume, self._export.epoch, block)

    def _check(self, length: int, offset: int, *, write: bool) -> None:
        if self._closed or self._engine._stopped:
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        if write and self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if offset + length > self.size:
            number = errno.ENOSPC if write else errno.EINVAL
            raise OSError(number, os.strerror(number))
