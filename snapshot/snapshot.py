"""Snapshots as their users see them: the overall snapshot, and names of exports."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from polyvol.mapping.names import unique_name
from polyvol.mapping.partition import partition_count
from polyvol.snapshot.partition_snapshot import PartitionSnapshotId

if TYPE_CHECKING:
    from datetime import datetime

    from polyvol.mapping.records.snapshots import SnapshotRecord
    from polyvol.mapping.records.volumes import Volume

_DESCRIBED = re.compile(r"\(([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\)")


@dataclass(frozen=True, slots=True)
class SnapshotShare:
    """How many of a volume's partitions one processor had at a cut."""

    processor: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The overall snapshot of a volume: one partition snapshot of each partition that it had at the cut.

    `record` has its identity (its UUID; within its volume, its epoch and its name) and the figures of its
    cut. After the cut only its name, its holds, and whether it is kept for clones change. Its partition
    snapshots are found by their numbers, so they cost nothing before they are asked for."""

    volume: "Volume"
    record: "SnapshotRecord"

    @property
    def shares(self) -> tuple[SnapshotShare, ...] | None:
        """How many of the partition snapshots each processor made (None: unknown, because the version that
        took it did not record it)."""
        return tuple(SnapshotShare(*each) for each in self.record.shares) or None

    @property
    def export(self) -> str:
        """Its name as an export: VOLUME@SNAPSHOT."""
        return export_name(self.volume.name, self.record.name)

    @property
    def partition_count(self) -> int:
        """How many partitions the volume had at the cut: its partition snapshots are numbered from 0 on."""
        return partition_count(self.record.size, self.volume.partition_size)

    def partition_snapshot(self, partition: int) -> PartitionSnapshotId:
        """The identity of the partition snapshot of this partition."""
        assert 0 <= partition < self.partition_count
        return PartitionSnapshotId(self.volume.id, self.record.epoch, partition)


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


def default_name(now: "datetime", taken: set[str], prefix: str = "") -> str:
    """A name made of the time (UTC), such as 20261123T101530Z, after the prefix, that none of `taken` has."""
    return unique_name(prefix + now.strftime("%Y%m%dT%H%M%SZ"), taken)
