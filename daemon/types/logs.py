"""Change logs and places of blocks, as the API shows them. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True, kw_only=True)
class PlacedView:
    """How many blocks of a change log are in one log area, which is on `devices`."""

    area: int
    devices: list[str]
    blocks: int


@dataclass(frozen=True, kw_only=True)
class ChangeLogView:
    """A change log: what a partition's hosts have changed since one of its partition snapshots, until the
    next. `id`: VOLUME@SNAPSHOT#PARTITION, or VOLUME#PARTITION if it begins with the volume. `begin`: the
    snapshot that it begins with, null for the volume, 'epoch:N' for a deleted one that is kept; `epoch`
    is its epoch (0: the volume's). `processor` maintains it. `rule_devices`: the devices that its log
    rule names, in order; `rule_any`: after these, any other one. `placed`: where its blocks are. `blocks`
    are in slots, `size` bytes; `zeroes` became zero, `bases` went back to their base places: they need
    none. `runs` of consecutive slots have the blocks. `writes` and `written` count what hosts wrote from
    its beginning to its end, in place too; null: unknown. `ended`: the snapshot that ended it; null: it
    is the current one, or a rollback ended it."""

    id: str
    volume: str
    partition: int
    begin: str | None
    epoch: int
    processor: int
    rule_devices: list[str]
    rule_any: bool
    placed: list[PlacedView]
    blocks: int
    size: int
    zeroes: int
    bases: int
    runs: int
    writes: int | None
    written: int | None
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class ChangeLogListView:
    """Some change logs of a volume, by partition and beginning. `uuid`: of the volume. `next`: the partition
    that the next page begins with; null: this was the last."""

    volume: str
    uuid: str
    logs: list[ChangeLogView]
    next: int | None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Blocks of a change log that lie together: `blocks` blocks of the partition from number `block` on, in
    log area `area`, on `device` from `offset` on."""

    block: int
    blocks: int
    area: int
    device: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class ChangeLogDetailView:
    """A change log with some of its runs, in the order of its blocks. `uuid`: of the volume. `next`: the
    number of the run that the next page begins with; null: this was the last."""

    log: ChangeLogView
    uuid: str
    runs: list[RunView]
    next: int | None


@dataclass(frozen=True, kw_only=True)
class PlaceView:
    """Where the byte at `offset` of a volume, or of its `snapshot`, is: in block `block` of its partition.
    `kind`: 'base' (at its base place), 'zero' (nowhere, because the block is zero), 'log' (in change log
    `log`, in log area `area`) or 'source' (where `source`, the snapshot that the volume is a clone of, has
    it). `device` and `device_offset`: of the byte, for 'base' and 'log'."""

    volume: str
    snapshot: str | None
    offset: int
    partition: int
    processor: int
    block: int
    kind: Literal["base", "zero", "log", "source"]
    log: str | None
    area: int | None
    device: str | None
    device_offset: int | None
    source: Optional["PlaceView"] = None
