"""counted: what the engine says of partitions, partition snapshots and change logs, against a reference.

How it works      The reference counts requests when they begin and when they end. The engine never counts
                  less than has ended, nor more than has begun. What it says of a partition snapshot is noted
                  at the cut, and must not change. The change logs have each slot in use once, and what
                  `locate` says of a block is in one of their runs.
Owner and locks   A lock over the counts: requests come from several threads.
"""

import threading
from collections import Counter
from typing import TYPE_CHECKING

from tests.support.model import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polyvol.engine import Engine, PartitionSnapshotState

ALL = 1 << 31
LOCATED_EVERY = 13


def _parts(offset: int, length: int, partition_size: int) -> "Iterator[tuple[int, int]]":
    """Each partition of a range with the bytes in it."""
    end = offset + length
    while offset < end:
        partition = offset // partition_size
        here = min(end, (partition + 1) * partition_size) - offset
        yield partition, here
        offset += here


def _frozen(state: "PartitionSnapshotState") -> dict[str, object]:
    """What never changes of a partition snapshot."""
    changing = ("frozen", "log", "since", "processor")
    return {name: value for name, value in state.items() if name not in changing}


class Counted:
    """The reference of one volume."""

    def __init__(self, volume: int, partition_size: int) -> None:
        self._volume, self._partition_size = volume, partition_size
        self._lock = threading.Lock()
        self._begun: dict[str, Counter[int]] = {"writes": Counter(), "written_bytes": Counter()}
        self._ended: dict[str, Counter[int]] = {"writes": Counter(), "written_bytes": Counter()}
        self._snapshots: dict[int, list[dict[str, object]]] = {}

    def begin(self, offset: int, length: int) -> None:
        """A request is made."""
        self._count(self._begun, offset, length)

    def end(self, offset: int, length: int) -> None:
        """It was done."""
        self._count(self._ended, offset, length)

    def _count(self, counts: dict[str, Counter[int]], offset: int, length: int) -> None:
        with self._lock:
            for partition, here in _parts(offset, length, self._partition_size):
                counts["writes"][partition] += 1
                counts["written_bytes"][partition] += here

    def ended(self) -> dict[str, Counter[int]]:
        """What has ended by now, to be passed to `cut`."""
        with self._lock:
            return {name: counts.copy() for name, counts in self._ended.items()}

    def cut(self, engine: "Engine", epoch: int, before: dict[str, Counter[int]]) -> None:
        """A snapshot was taken; `before`: what had ended when that began."""
        states = engine.partition_snapshots(self._volume, epoch, 0, ALL)
        for state in states:
            number, writes, written = state["partition"], state["writes"], state["written_bytes"]
            assert writes is not None
            assert written is not None
            with self._lock:
                assert before["writes"][number] <= writes <= self._begun["writes"][number]
                begun = self._begun["written_bytes"][number]
                assert before["written_bytes"][number] <= written <= begun
            assert bool(state["last_write_ns"]) == (writes > 0)
        self._snapshots[epoch] = [_frozen(state) for state in states]

    def deleted(self, epoch: int) -> None:
        """A snapshot was deleted."""
        del self._snapshots[epoch]

    def killed(self, engine: "Engine") -> None:
        """A kill may have lost what was counted since the last cut, and nothing of a snapshot."""
        newest = self._snapshots[max(self._snapshots)] if self._snapshots else []
        states = engine.partitions(self._volume, 0, ALL)
        for state in states:
            for name in ("writes", "written_bytes"):
                found = state[name]
                assert found <= self._begun[name][state["partition"]]
                self._begun[name][state["partition"]] = self._ended[name][state["partition"]] = found
        for frozen in newest:
            live = next(state for state in states if state["partition"] == frozen["partition"])
            assert live["writes"] >= frozen["writes"]  # type: ignore[operator]

    def check_snapshot(self, engine: "Engine", epoch: int) -> None:
        """Nothing of a snapshot has changed, and its pages together are what one call returns."""
        states = engine.partition_snapshots(self._volume, epoch, 0, ALL)
        assert [_frozen(state) for state in states] == self._snapshots[epoch]
        pages = [
            engine.partition_snapshots(self._volume, epoch, first, 2) for first in range(0, len(states), 2)
        ]
        assert [state for page in pages for state in page] == states
        logs = {log["partition"]: log for log in engine.change_logs(self._volume, 0, ALL, epoch)}
        older = [other for other in self._snapshots if other < epoch]
        for state in states:
            log = logs.get(state["partition"])
            assert state["log"] == (log and {kind: log[kind] for kind in ("blocks", "zeroes", "bases")})
            assert state["since"] is not None
            if older:
                before = self._snapshots[max(older)][state["partition"]]["writes"]
                assert state["since"]["writes"] == state["writes"] - before  # type: ignore[operator]
            else:
                assert state["since"]["writes"] == state["writes"]
            assert state["slots"] + state["zeroes"] + state["bases"] == state["size"] // BLOCK

    def check(self, engine: "Engine") -> None:
        """The live partitions and the change logs, while nothing is written."""
        states = engine.partitions(self._volume, 0, ALL)
        for state in states:
            number = state["partition"]
            assert self._ended["writes"][number] <= state["writes"] <= self._begun["writes"][number]
        logs = engine.change_logs(self._volume, 0, ALL, None)
        used = engine.space(self._volume)["used_bytes"]
        assert sum(log["blocks"] for log in logs) * BLOCK == used, "each slot is in one change log"
        assert {log["begin"] for log in logs} <= {0, *self._snapshots}
        held = {}
        for log in logs:
            key = (log["partition"], log["begin"])
            runs, total = engine.change_log_runs(self._volume, *key, 0, ALL)
            assert (len(runs), sum(run["blocks"] for run in runs)) == (log["runs"], log["blocks"])
            assert total == log["runs"]
            some, same_total = engine.change_log_runs(self._volume, *key, 1, 2)
            assert (some, same_total) == (runs[1:3], total)
            held[key] = runs
        for state in states:
            blocks = state["slots"] + state["zeroes"] + state["bases"]
            for block in range(0, blocks, LOCATED_EVERY):
                found = engine.locate(
                    self._volume, state["partition"] * self._partition_size + block * BLOCK, None
                )
                if found["kind"] == "log":
                    key = (state["partition"], found["begin"] or 0)
                    places = {
                        (run["area"], run["device"], run["offset"] + (block - run["block"]) * BLOCK)
                        for run in held[key]
                        if run["block"] <= block < run["block"] + run["blocks"]
                    }
                    assert (found["area"], found["device"], found["device_offset"]) in places
