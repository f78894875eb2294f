"""Specifications: volumes and change logs as the engine is told of them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from polyvol.mapping.extent import Extent
from polyvol.mapping.partition import Partition
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.rollbacks import Rollback
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, LogSpec, VolumeSpec


def volume_spec(
    volume: Volume,
    partitions: Iterable[Partition],
    logs: Sequence[ChangeLog],
    snapshots: Iterable[SnapshotRecord],
    rollbacks: Iterable[Rollback],
    directory: str,
    manifests: str,
) -> "VolumeSpec":
    """The volume as the engine's specification; `snapshots`: those that are kept for clones too;
    `manifests`: the directory of its journals' manifests."""
    return {
        "id": volume.id,
        "uuid": str(volume.uuid),
        "name": volume.name,
        "size": volume.size,
        "partition_size": volume.partition_size,
        "partitions": [
            {"processor": partition.processor, "extents": _extent_specs(partition.extents)}
            for partition in partitions
        ],
        "logs": [log_spec(log) for log in logs],
        "default_logs": [log.number for log in logs if log.default],
        "directory": directory,
        "manifests": {
            "directory": manifests,
            "partitions": volume.manifests,
            "older": volume.state == "ready" and not volume.manifests,
        },
        "snapshots": [
            {"epoch": snapshot.epoch, "log": snapshot.log, "size": snapshot.size} for snapshot in snapshots
        ],
        "rollbacks": [
            {"at": one.at, "to": one.to, "size": one.size, "to_size": one.to_size} for one in rollbacks
        ],
        "source": None
        if volume.source is None
        else {"volume": volume.source.volume, "epoch": volume.source.epoch},
        "next_epoch": volume.next_epoch,
    }


def log_spec(log: ChangeLog) -> "LogSpec":
    """The change log as the engine's specification."""
    return {"number": log.number, "extents": _extent_specs(log.extents)}


def _extent_specs(extents: Iterable[Extent]) -> "list[ExtentSpec]":
    return [{"device": extent.device, "offset": extent.offset, "length": extent.length} for extent in extents]
