"""Clones: the plan of a volume that is made from a snapshot. Pure.

How it works      A clone has partitions of its source's size, on processors of its own choice, and no extents
                  for them: what it shows is its source's until it is written. All that is written goes to its
                  change logs, for which there is room for twice its size: all of it, and that much again for
                  its own snapshots.
Invariants        As in volumes.py.
Errors            BadName, NameInUse, BadProcessors and others of errors.py.
"""

from dataclasses import dataclass

from polyvol.mapping.names import check_free
from polyvol.mapping.partition import Partition, partition_lengths
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.inventory import Inventory, SpaceAllocator
from polyvol.mapping.plans.log_areas import plan_areas
from polyvol.mapping.plans.log_rules import bind_rules, named_devices, parse_rules
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import CloneSource, Volume, WhenFull

LOG_FACTOR = 2
"""How many times a clone's size its log areas have, if there is room."""


@dataclass(frozen=True, slots=True)
class CloneRequest:
    """What was asked for; each as in a VolumeRequest. A clone has its own log areas, so its source's log
    rules are not for it."""

    name: str
    log_devices: tuple[str, ...] = ()
    processors: int | tuple[int, ...] | None = None
    when_full: WhenFull = "keep-writing"
    log_limit: int | None = None


def plan_clone(
    request: CloneRequest, source: Volume, snapshot: SnapshotRecord, inventory: Inventory
) -> VolumePlan:
    """The clone that would be made of a volume's snapshot; see the module's errors."""
    name = check_free("volume", request.name, inventory.volume_names)
    wanted = parse_rules(request.log_devices)
    processors = placement.choose_processors(request.processors, inventory.processors, inventory.load)
    lengths = dict(enumerate(partition_lengths(snapshot.size, source.partition_size)))
    owners = placement.choose_owners(len(lengths), processors)
    partitions = tuple(Partition(number, owner, ()) for number, owner in enumerate(owners))
    rules = bind_rules(name, wanted, len(lengths), owners, inventory)
    allocator = SpaceAllocator(inventory)
    rooms = placement.rooms(lengths, owners)
    areas = plan_areas(allocator, name, snapshot.size, rooms, named_devices(wanted), LOG_FACTOR)
    return VolumePlan(
        name=name,
        size=snapshot.size,
        partition_size=source.partition_size,
        partitions=partitions,
        logs=areas,
        new_devices=tuple(allocator.made),
        when_full=request.when_full,
        source=CloneSource(source.id, snapshot.epoch),
        log_rules=rules,
        log_limit=request.log_limit,
    )
