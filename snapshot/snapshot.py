"""Snapshots as their users see them: names, and the partition snapshots that one is made of."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from polyvol.mapping.names import unique_name

if TYPE_CHECKING:
    from datetime import datetime

    from polyvol.engine import PartitionMapState
    from polyvol.mapping.records.snapshots import SnapshotRecord
    from polyvol.mapping.records.volumes import Volume

_DESCRIBED = re.compile(r"\(([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\)")


@dataclass(frozen=True, slots=True)
class PartitionSnapshot:
    """One partition as it was at a cut: its number, its processor, and its state there. `write_seq` numbers
    its latest mapping change (0: none yet), `blocks_mapped` counts blocks not at their base place, `frozen`
    is False while the snapshot still shares the partition's live block map."""

    partition: int
    processor: int
    epoch: int
    write_seq: int
    blocks_mapped: int
    frozen: bool


def export_name(volume: str, snapshot: str | None = None) -> str:
    """The NBD name of a volume, or of one of its snapshots."""
    return volume if snapshot is None else f"{volume}@{snapshot}"


def export_parts(name: str) -> tuple[str, str | None]:
    """The volume, and the snapshot if it is one, of an export's NBD name."""
    volume, at, snapshot = name.partition("@")
    return volume, snapshot if at else None


def export_description(volume: "Volume", snapshot: "SnapshotRecord | None" = None) -> str:
    """The description of an export for NBD clients. Attached hosts check by its UUID (`described_uuid`)
    whether it is still the same volume or snapshot."""
    if snapshot is None:
        return f"volume {volume.name} ({volume.uuid})"
    return f"snapshot {snapshot.name} of volume {volume.name} ({snapshot.uuid})"


def described_uuid(description: str) -> UUID | None:
    """The UUID of the volume or snapshot that an export's description is of. A name may look like a UUID, but
    has no parentheses."""
    found = _DESCRIBED.search(description)
    return None if found is None else UUID(found[1])


def partition_snapshots(states: "Iterable[PartitionMapState]") -> tuple[PartitionSnapshot, ...]:
    """The engine's answer as records."""
    return tuple(
        PartitionSnapshot(
            state["partition"],
            state["processor"],
            state["epoch"],
            state["write_seq"],
            state["blocks_mapped"],
            state["frozen"],
        )
        for state in states
    )


def default_name(now: "datetime", taken: set[str], prefix: str = "") -> str:
    """A name made of the time (UTC), such as 20261123T101530Z, after the prefix, that none of `taken` has."""
    return unique_name(prefix + now.strftime("%Y%m%dT%H%M%SZ"), taken)
