"""Specifications: volumes, log areas and log rules as they are passed to the engine, and where its files
are.

Owner and locks   The caller holds the volume's lock, or is the only one who has the catalog.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.extent import Extent
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule, from_turn
from polyvol.mapping.records.volumes import Volume

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, LogRule as LogRuleSpec, LogSpec, VolumeRules, VolumeSpec


def volume_directory(state_dir: Path, volume: Volume) -> Path:
    """The directory of a volume's journals and checkpoints."""
    return state_dir / "volumes" / str(volume.uuid)


def manifest_directory(state_dir: Path, volume: Volume) -> Path:
    """The directory of the manifests of a volume's journals."""
    return state_dir / "manifests" / str(volume.uuid)


def volume_spec(catalog: Catalog, volume: Volume, state_dir: Path) -> "VolumeSpec":
    """The volume as the engine's specification, as the catalog has it: with the snapshots that are kept for
    clones too."""
    areas = catalog.log_areas.of(volume.id)
    partitions = catalog.volumes.partitions(volume.id)
    processors = {partition.processor for partition in partitions}
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
        "logs": [log_spec(area) for area in areas],
        "log_rules": rule_specs(catalog.log_areas.rules(volume.id), areas, processors),
        "directory": str(volume_directory(state_dir, volume)),
        "manifests": {
            "directory": str(manifest_directory(state_dir, volume)),
            "partitions": volume.manifests,
            "older": volume.state == "ready" and not volume.manifests,
        },
        "snapshots": [
            {
                "epoch": snapshot.epoch,
                "log_rules": rule_specs(snapshot.log_rules, areas, processors),
                "size": snapshot.size,
            }
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


def volume_rules(
    catalog: Catalog, volume: Volume, rules: Sequence[LogRule], areas: Iterable[LogArea]
) -> "VolumeRules":
    """Rules of a volume that has these areas, and those of its snapshots that have their own, as the engine's
    specification."""
    areas, processors = list(areas), catalog.volumes.processors(volume.id)
    return {
        "log_rules": rule_specs(rules, areas, processors),
        "snapshots": [
            {"epoch": epoch, "log_rules": rule_specs(each, areas, processors)}
            for epoch, each in catalog.snapshots.rules_by_epoch(volume.id).items()
        ],
    }


def log_spec(area: LogArea) -> "LogSpec":
    """The log area as the engine's specification."""
    return {"number": area.number, "extents": _extent_specs(area.extents)}


def rule_specs(
    rules: Sequence[LogRule], areas: Iterable[LogArea], processors: Iterable[int]
) -> "list[LogRuleSpec]":
    """The log rules of a volume, which has these areas and these processors, as the engine's specification.
    The rules for the rest become one rule for each turn: each processor begins the list at another place. The
    last one is for all processors, so also for those that get partitions by growth."""
    on: dict[int, list[int]] = {}
    for area in areas:
        on.setdefault(area.device, []).append(area.number)
    specs: list[LogRuleSpec] = [
        {
            "partitions": rule.partitions,
            "processors": None if rule.processor is None else [rule.processor],
            "logs": _numbers([rule], on),
            "any": rule.others,
        }
        for rule in rules
        if not rule.rest
    ]
    rest = [rule for rule in rules if rule.rest]
    if not rest:
        return specs
    turns = [rule for rule in rest if _numbers([rule], on)]
    begin: dict[int, list[int]] = {}
    for ordinal, processor in enumerate(sorted(processors)):
        begin.setdefault(ordinal % max(1, len(turns)), []).append(processor)
    for first in sorted(begin, reverse=True):
        specs.append(
            {
                "partitions": None,
                "processors": begin[first] if first else None,
                "logs": _numbers(from_turn(turns, first), on),
                "any": rest[-1].others,
            }
        )
    return specs


def _numbers(rules: Iterable[LogRule], on: Mapping[int, Sequence[int]]) -> list[int]:
    """The numbers of the areas that rules name; `on`: those on each device."""
    return [number for rule in rules for device in rule.devices for number in on.get(device, ())]


def _extent_specs(extents: Iterable[Extent]) -> "list[ExtentSpec]":
    return [{"device": extent.device, "offset": extent.offset, "length": extent.length} for extent in extents]
