"""sim_partitions: what the sim engine says of partitions, partition snapshots, change logs and places.

How it works      A block in a slot is a `Slot`, which versions share as one object; all others are at their
                  base places. So a version's blocks that its parent does not have are found by identity.
                  `SimMaps` is what a volume leaves behind of this: each snapshot's parent, and counters.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.sim_checks import BLOCK, check

if TYPE_CHECKING:
    from polyvol.engine import (
        ChangeLogCount,
        ChangeLogRun,
        ChangeLogState,
        Location,
        PartitionSnapshotState,
        PartitionState,
        ProcessorStats,
    )


class Slot(bytes):
    """The contents of a block that is in a slot, and the number of that."""

    number: int


@dataclass
class Counts:
    """What hosts have written to a partition; `known`: False if a version that does not count has."""

    writes: int = 0
    written: int = 0
    last_ns: int = 0
    known: bool = True


@dataclass
class SimMaps:
    """A volume's blocks, its snapshots' blocks by epoch, its epoch, and what they come from. `line`: the
    epoch of the snapshot that the live volume comes from (0: none); `parents`: the same of snapshots."""

    blocks: dict[int, bytes] = field(default_factory=dict)
    snapshots: dict[int, dict[int, bytes]] = field(default_factory=dict)
    epoch: int = 1
    line: int = 0
    parents: dict[int, int] = field(default_factory=dict)
    counts: dict[int, Counts] = field(default_factory=dict)
    """By partition."""
    counted: dict[int, dict[int, Counts]] = field(default_factory=dict)
    """By epoch and partition."""
    slots: int = 0
    drops: int = 0
    rolled_back: int = 0
    """The last rollback that it has."""

    def cut(self) -> int:
        """End the epoch: it is a snapshot's."""
        epoch = self.epoch
        self.snapshots[epoch], self.parents[epoch], self.line = dict(self.blocks), self.line, epoch
        self.counted[epoch] = {number: Counts(**vars(each)) for number, each in self.counts.items()}
        self.epoch += 1
        return epoch

    def drop(self, epoch: int) -> None:
        """Forget a snapshot: what came from it comes from what it came from."""
        del self.snapshots[epoch]
        self.drops += 1
        parent = self.parents.pop(epoch, 0)
        self.parents = {each: parent if of == epoch else of for each, of in self.parents.items()}
        self.line = parent if self.line == epoch else self.line

    def keep_only(self, epochs: set[int]) -> None:
        """Forget all other snapshots."""
        for epoch in self.snapshots.keys() - epochs:
            self.drop(epoch)

    def go_back(self, at: int, to: int) -> None:
        """Be what the snapshot `to` shows."""
        self.blocks, self.line, self.rolled_back = dict(self.snapshots[to]), to, at
        self.epoch = max(self.epoch, at + 1)

    def put(self, block: int, data: bytes, *, clone: bool) -> None:
        """Write a block: in place, or to a slot where a snapshot needs what is there."""
        old, parent = self.blocks.get(block), self.snapshots.get(self.line)
        if clone or isinstance(old, Slot) or (parent is not None and parent.get(block) is old):
            data = Slot(data)
            shared = parent is not None and parent.get(block) is old
            if isinstance(old, Slot) and not shared:
                data.number = old.number
            else:
                data.number, self.slots = self.slots, self.slots + 1
        self.blocks[block] = data

    def note(self, partition: int, length: int, now_ns: int) -> None:
        """Count a write."""
        counts = self.counts.setdefault(partition, Counts())
        counts.writes, counts.written, counts.last_ns = counts.writes + 1, counts.written + length, now_ns

    def map(self, epoch: int | None) -> dict[int, bytes]:
        """The blocks of the live volume, or of a snapshot (0: nothing)."""
        return self.blocks if epoch is None else self.snapshots.get(epoch, {})

    def versions(self) -> Iterator[tuple[int | None, int]]:
        """Each version with its parent."""
        yield None, self.line
        yield from self.parents.items()


class SimPartitions:
    """As polyvol.engine.Engine."""

    processors: int
    volumes: dict[int, Any]

    def _begin(self, name: str, *arguments: object) -> None:
        raise NotImplementedError

    def _volume(self, volume: int) -> Any:
        raise NotImplementedError

    def _snapshot(self, volume: int, epoch: int) -> dict[int, bytes]:
        raise NotImplementedError

    def partition_snapshots(
        self, volume: int, epoch: int, first: int, count: int
    ) -> "list[PartitionSnapshotState]":
        self._begin("partition_snapshots", volume, epoch, first, count)
        _refuse_large(first, count)
        maps, spec = self._volume(volume).stored, self._volume(volume).spec
        blocks = self._snapshot(volume, epoch)
        size = next((each["size"] for each in spec["snapshots"] if each["epoch"] == epoch), spec["size"])
        found: list[PartitionSnapshotState] = []
        for number in range(first, min(first + count, -(-size // spec["partition_size"]))):
            counts = maps.counted.get(epoch, {}).get(number, Counts())
            before = maps.counted.get(maps.parents[epoch], {}).get(number, Counts())
            mine, live = _within(spec, blocks, number), _within(spec, maps.blocks, number)
            logs = self.change_logs(volume, number, 1, epoch)
            length = min(spec["partition_size"], size - number * spec["partition_size"])
            slots, zeroes = _kinds(mine)
            since = {
                "writes": counts.writes - before.writes,
                "written_bytes": counts.written - before.written,
            }
            found.append(
                {
                    "partition": number,
                    "processor": spec["partitions"][number]["processor"],
                    "epoch": epoch,
                    "size": length,
                    "frozen": mine.keys() != live.keys()
                    or any(mine[each] is not live[each] for each in mine),
                    "slots": slots,
                    "zeroes": zeroes,
                    "bases": length // BLOCK - slots - zeroes,
                    "writes": counts.writes if counts.known else None,
                    "written_bytes": counts.written if counts.known else None,
                    "last_write_ns": counts.last_ns if counts.known else None,
                    "write_seq": 0,
                    "checksummed": slots,
                    "since": since if counts.known and before.known else None,  # type: ignore[typeddict-item]
                    "log": {key: logs[0][key] for key in ("blocks", "zeroes", "bases")} if logs else None,  # type: ignore[typeddict-item]
                }
            )
        return found

    def partitions(self, volume: int, first: int, count: int) -> "list[PartitionState]":
        self._begin("partitions", volume, first, count)
        _refuse_large(first, count)
        maps, spec = self._volume(volume).stored, self._volume(volume).spec
        found: list[PartitionState] = []
        for number in range(first, min(first + count, len(spec["partitions"]))):
            counts = maps.counts.get(number, Counts())
            slots, zeroes = _kinds(_within(spec, maps.blocks, number))
            begin = number * spec["partition_size"]
            length = min(spec["partition_size"], spec["size"] - begin)
            found.append(
                {
                    "partition": number,
                    "processor": spec["partitions"][number]["processor"],
                    "slots": slots,
                    "zeroes": zeroes,
                    "bases": length // BLOCK - slots - zeroes,
                    "writes": counts.writes,
                    "written_bytes": counts.written,
                    "last_write_ns": counts.last_ns if counts.known else None,
                    "write_seq": 0,
                    "versions": len(maps.snapshots),
                    "newest_snapshot": max(maps.snapshots, default=0),
                }
            )
        return found

    def change_logs(self, volume: int, first: int, count: int, begin: int | None) -> "list[ChangeLogState]":
        self._begin("change_logs", volume, first, count, begin)
        _refuse_large(first, count)
        target = self._volume(volume)
        found: list[ChangeLogState] = []
        for number in range(first, min(first + count, len(target.spec["partitions"]))):
            for epoch in [0, *sorted(target.stored.snapshots)]:
                blocks = self._log(volume, number, epoch)
                if not blocks or begin not in (None, epoch):
                    continue
                ends = [each for each, parent in target.stored.versions() if parent == epoch]
                slots, zeroes = _kinds(blocks)
                found.append(
                    {
                        "partition": number,
                        "processor": target.spec["partitions"][number]["processor"],
                        "begin": epoch,
                        "blocks": slots,
                        "zeroes": zeroes,
                        "bases": 0,
                        "runs": len(self._runs(volume, number, epoch)),
                        "areas": [(min(target.logs), slots)] if slots else [],
                        "writes": None,
                        "written_bytes": None,
                        "ended": None if None in ends else min(each for each in ends if each is not None),
                    }
                )
        return found

    def change_log_counts(self, volume: int) -> "list[ChangeLogCount]":
        self._begin("change_log_counts", volume)
        counts: Counter[tuple[int, int]] = Counter()
        for log in self.change_logs(volume, 0, 1 << 20, None):
            counts[log["begin"], log["processor"]] += 1
        return [
            {"begin": begin, "processor": processor, "logs": logs}
            for (begin, processor), logs in sorted(counts.items())
        ]

    def change_log_runs(
        self, volume: int, partition: int, begin: int, first_run: int, count: int
    ) -> "tuple[list[ChangeLogRun], int]":
        self._begin("change_log_runs", volume, partition, begin, first_run, count)
        runs = self._runs(volume, partition, begin)
        return runs[first_run : first_run + count], len(runs)

    def locate(self, volume: int, offset: int, epoch: int | None) -> "Location":
        self._begin("locate", volume, offset, epoch)
        target = self._volume(volume)
        spec, maps = target.spec, target.stored
        if epoch is not None:
            self._snapshot(volume, epoch)
        number, within = divmod(offset, spec["partition_size"])
        place: Location = {
            "partition": number,
            "processor": spec["partitions"][number]["processor"],
            "block": within // BLOCK,
            "kind": "base",
            "area": None,
            "device": None,
            "device_offset": None,
            "begin": None,
        }
        data = maps.map(epoch).get(offset // BLOCK)
        if isinstance(data, Slot):
            if not data.strip(b"\0"):
                return {**place, "kind": "zero"}
            version = epoch
            while maps.map(parent := _parent(maps, version)).get(offset // BLOCK) is data:
                version = parent
            area, device, at = _slot_place(spec, data)
            where = {"area": area, "device": device, "device_offset": at + offset % BLOCK}
            return {**place, "kind": "log", "begin": _parent(maps, version), **where}  # type: ignore[typeddict-item]
        if spec["source"] is not None:
            return {**place, "kind": "source"}
        for extent in spec["partitions"][number]["extents"]:
            if within < extent["length"]:
                where = {"device": extent["device"], "device_offset": extent["offset"] + within}
                return {**place, **where}  # type: ignore[typeddict-item]
            within -= extent["length"]
        raise AssertionError("no extent has it")

    def processor_stats(self) -> "list[ProcessorStats]":
        owners = [part["processor"] for each in self.volumes.values() for part in each.spec["partitions"]]
        return [
            {
                "processor": number,
                "parts": 10,
                "reader_parts": 4,
                "batches": 3,
                "slow_ios": 0,
                "partitions": owners.count(number),
                "cpu_ns": 5_000_000,
                "queued": 0,
            }
            for number in range(self.processors)
        ]

    def _log(self, volume: int, partition: int, begin: int) -> dict[int, bytes]:
        """The blocks that the versions after `begin` have in slots, and it does not have."""
        target = self._volume(volume)
        parent = target.stored.map(begin)
        return {
            block: data
            for version, of in target.stored.versions()
            if of == begin
            for block, data in _within(target.spec, target.stored.map(version), partition).items()
            if isinstance(data, Slot) and parent.get(block) is not data
        }

    def _runs(self, volume: int, partition: int, begin: int) -> "list[ChangeLogRun]":
        spec = self._volume(volume).spec
        check(partition < len(spec["partitions"]), "not-found", f"no partition {partition}")
        runs: list[ChangeLogRun] = []
        for block, data in sorted(self._log(volume, partition, begin).items()):
            if not isinstance(data, Slot) or not data.strip(b"\0"):
                continue
            area, device, offset = _slot_place(spec, data)
            block -= partition * spec["partition_size"] // BLOCK
            last = runs[-1] if runs else None
            if last is not None and (block, offset) == (
                last["block"] + last["blocks"],
                last["offset"] + last["blocks"] * BLOCK,
            ):
                last["blocks"] += 1
                continue
            runs.append({"block": block, "blocks": 1, "area": area, "device": device, "offset": offset})
        return runs


def _parent(maps: SimMaps, version: int | None) -> int:
    return maps.line if version is None else maps.parents[version]


def _within(spec: Any, blocks: dict[int, bytes], partition: int) -> dict[int, bytes]:
    """The blocks of one partition."""
    each = spec["partition_size"] // BLOCK
    return {block: data for block, data in blocks.items() if block // each == partition}


def _kinds(blocks: dict[int, bytes]) -> tuple[int, int]:
    """How many are in slots, and how many of those that would be are zero."""
    slots = [data for data in blocks.values() if isinstance(data, Slot)]
    zeroes = sum(1 for data in slots if not data.strip(b"\0"))
    return len(slots) - zeroes, zeroes


def _slot_place(spec: Any, slot: Slot) -> tuple[int, int, int]:
    """The area, the device and the offset of a slot."""
    log = spec["logs"][0]
    extent = log["extents"][0]
    return log["number"], extent["device"], extent["offset"] + slot.number * BLOCK


def _refuse_large(*numbers: int) -> None:
    """As Rust's 32 bits do."""
    if not all(0 <= number < 1 << 32 for number in numbers):
        raise OverflowError("out of range integral type conversion attempted")
