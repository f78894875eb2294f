"""The space that snapshots hold. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SnapshotUseView:
    """What a snapshot holds. `used` is what it sees of the change logs; of that `shared` is seen by others
    too. `frees` is what deleting it would free: `frees_log` of it in change logs, the rest at base places,
    where devices give it back if they can."""

    used: int
    shared: int
    frees: int
    frees_log: int


@dataclass(frozen=True, kw_only=True)
class VolumeUseView:
    """What a volume holds in its change logs: `live` is what it sees itself, `snapshots_only` what only its
    snapshots see, and deleting all of them would free. Of `live`, relocation can bring `comes_back` back to
    base places now; `snapshots_keep` stays because snapshots need the base places, or, of a clone, because
    it has none; `clones_keep` because clones see it in the change logs."""

    used: int
    live: int
    snapshots_only: int
    comes_back: int
    snapshots_keep: int
    clones_keep: int
