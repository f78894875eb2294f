"""Specifications: volumes, log areas and log rules as the engine is told of them, and where it keeps its files.

Owner and locks   The caller holds the volume's lock, or is the only one who has the catalog.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.extent import Extent
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.volumes import Volume

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, LogRule, LogSpec, VolumeSpec


def volume_directory(state_dir: Path, volume: Volume) -> Path:
    """Where the engine keeps a volume's journals and checkpoints."""
    return state_dir / "volumes" / str(volume.uuid)


def manifest_directory(state_dir: Path, volume: Volume) -> Path:
    """Where the engine keeps the manifests of a volume's journals."""
    return state_dir / "manifests" / str(volume.uuid)


def volume_spec(catalog: Catalog, volume: Volume, state_dir: Path) -> "VolumeSpec":
    """The volume as the engine's specification, as the catalog has it: with the snapshots that are kept for
    clones too."""
    logs = catalog.change_logs.of(volume.id)
    partitions = catalog.volumes.partitions(volume.id)
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
        "log_rules": volume_rules(logs, [partition.processor for partition in partitions]),
        "directory": str(volume_directory(state_dir, volume)),
        "manifests": {
            "directory": str(manifest_directory(state_dir, volume)),
            "partitions": volume.manifests,
            "older": volume.state == "ready" and not volume.manifests,
        },
        "snapshots": [
            {"epoch": snapshot.epoch, "log_rules": snapshot_rules(snapshot.log), "size": snapshot.size}
            for snapshot in catalog.snapshots.with_kept(volume.id)
        ],
        "rollbacks": [
            {"at": one.at, "to": one.to, "size": one.size, "to_size": one.to_size}
            for one in catalog.rollbacks.of(volume.id)
        ],
        "source": None
        if volume.source is None
        else {"volume": volume.source.volume, "epoch": volume.source.epoch},
        "next_epoch": volume.next_epoch,
    }


def log_spec(log: ChangeLog) -> "LogSpec":
    """The change log as the engine's specification."""
    return {"number": log.number, "extents": _extent_specs(log.extents)}


def volume_rules(logs: Sequence[ChangeLog], processors: Iterable[int]) -> "list[LogRule]":
    """The log rules of a volume with these log areas and the processors of its partitions: its default areas,
    beginning with a different one on each processor, then any other."""
    if all(log.default for log in logs):
        return []
    defaults = [log.number for log in logs if log.default]
    rules: list[LogRule] = []
    for turn, processor in enumerate(dict.fromkeys(processors)):
        first = turn % max(1, len(defaults))
        order = defaults[first:] + defaults[:first]
        rules.append({"partitions": None, "processors": [processor], "logs": order, "any": True})
    return rules


def snapshot_rules(log: int | None) -> "list[LogRule]":
    """The log rules of a snapshot for which this area was named, or none: that area, then any other."""
    if log is None:
        return []
    return [{"partitions": None, "processors": None, "logs": [log], "any": True}]


def _extent_specs(extents: Iterable[Extent]) -> "list[ExtentSpec]":
    return [{"device": extent.device, "offset": extent.offset, "length": extent.length} for extent in extents]
