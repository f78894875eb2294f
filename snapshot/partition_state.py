"""Partition states: what the engine counts of a partition, as it is now.

A partition snapshot (partition_snapshot.py) has the same counters as they were at its cut.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvol.mapping.ids import Epoch
from polyvol.snapshot.partition_snapshot import Writes

if TYPE_CHECKING:
    from polyvol.engine import PartitionState as EngineState


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition now: its number and the processor that owns it. The counters are as in
    `PartitionSnapshot`, but never unknown: what was not counted is missing in them. `frozen_maps`: how many
    block maps of snapshots it has; `newest_snapshot`: the epoch of the newest snapshot that shows it (0: none
    does)."""

    number: int
    processor: int
    slots: int
    zeroes: int
    bases: int
    total: Writes
    last_write_ns: int | None
    write_seq: int
    frozen_maps: int
    newest_snapshot: Epoch


def partition_state(state: "EngineState") -> PartitionState:
    """The engine's answer as a record."""
    return PartitionState(
        number=state["partition"],
        processor=state["processor"],
        slots=state["slots"],
        zeroes=state["zeroes"],
        bases=state["bases"],
        total=Writes(state["writes"], state["written_bytes"]),
        last_write_ns=state["last_write_ns"],
        write_seq=state["write_seq"],
        frozen_maps=state["versions"],
        newest_snapshot=Epoch(state["newest_snapshot"]),
    )
