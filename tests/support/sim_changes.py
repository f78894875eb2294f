"""sim_changes: what the sim engine says about what changed and what snapshots hold."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from tests.support.sim_checks import BLOCK

if TYPE_CHECKING:
    from polyvol.engine import VolumeUse


def changed_runs(before: dict[int, bytes], after: dict[int, bytes]) -> list[tuple[int, int]]:
    """The extents whose blocks differ, in order, none touching the next."""
    runs: list[tuple[int, int]] = []
    for block in sorted(before.keys() | after.keys()):
        if before.get(block) == after.get(block):
            continue
        offset = block * BLOCK
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + BLOCK)
        else:
            runs.append((offset, BLOCK))
    return runs


def page(
    runs: list[tuple[int, int]], start: int, extents_max: int
) -> tuple[list[tuple[int, int]], int | None]:
    """The runs from `start` on, at most so many, and where the next one begins."""
    left = [(max(offset, start), offset + length) for offset, length in runs if offset + length > start]
    shown = [(offset, end - offset) for offset, end in left]
    return shown[:extents_max], shown[extents_max][0] if len(shown) > extents_max else None


class Comparisons(ABC):
    """The calls of the sim engine that compare snapshots."""

    world: Any

    @abstractmethod
    def _begin(self, name: str, *arguments: object) -> None: ...

    @abstractmethod
    def _volume(self, volume: int) -> Any: ...

    @abstractmethod
    def _snapshot(self, volume: int, epoch: int) -> dict[int, bytes]: ...

    @abstractmethod
    def drop_snapshot(self, volume: int, epoch: int) -> int: ...

    def changes(
        self, volume: int, since: int, until: int | None, start: int, extents_max: int
    ) -> tuple[list[tuple[int, int]], int | None]:
        self._begin("changes", volume, since, until)
        after = self._volume(volume).stored.blocks if until is None else self._snapshot(volume, until)
        return page(changed_runs(self._snapshot(volume, since), after), start, extents_max)

    def change_total(self, volume: int, since: int, until: int | None) -> tuple[int, int]:
        runs, _ = self.changes(volume, since, until, 0, 1 << 62)
        return len(runs), sum(length for _, length in runs)

    def drop_snapshots(self, volume: int, epochs: list[int]) -> int:
        self._begin("drop_snapshots", volume, epochs)
        return sum(self.drop_snapshot(volume, epoch) for epoch in epochs)

    def snapshot_use(self, volume: int) -> "VolumeUse":
        stored = self._volume(volume).stored
        held = [
            {
                "epoch": epoch,
                "log_bytes": len(blocks) * BLOCK,
                "only_log_bytes": min(1, len(blocks)) * BLOCK,
                "only_base_bytes": 0,
            }
            for epoch, blocks in sorted(stored.snapshots.items())
        ]
        return {
            "live_log_bytes": self.world.live.get(volume, len(stored.blocks) * BLOCK),
            "snapshots": held,  # type: ignore[typeddict-item]
        }

    def homeward(self, volume: int) -> tuple[int, int]:
        self._volume(volume)
        return self.world.relocatable.get(volume, 0), self.world.pinned.get(volume, 0)
