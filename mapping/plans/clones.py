"""Clones: the plan of a volume that is made from a snapshot. Pure.

How it works      A clone has partitions of its source's size, on processors of its own choice, and no extents
                  for them: what it shows is its source's until it is written. All that is written goes to its
                  change logs, for which there is room for twice its size: all of it, and that much again for
                  its own snapshots.
Invariants        As in volumes.py.
Errors            BadName, NameInUse, BadProcessors and others of errors.py.
"""

from dataclasses import dataclass

from polyvol.mapping.names import check_free, refuse_repeats
from polyvol.mapping.partition import Partition, partition_lengths
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.change_logs import plan_logs
from polyvol.mapping.plans.inventory import Inventory, SpaceAllocator
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import CloneSource, Volume, WhenFull

LOG_FACTOR = 2
"""How many times a clone's size its change logs have, if there is room."""


@dataclass(frozen=True, slots=True)
class CloneRequest:
    """What was asked for. `processors` None: all that there are."""

    name: str
    log_devices: tuple[str, ...] = ()
    processors: int | None = None
    when_full: WhenFull = "keep-writing"


def plan_clone(
    request: CloneRequest, source: Volume, snapshot: SnapshotRecord, inventory: Inventory
) -> VolumePlan:
    """The clone that would be made of a volume's snapshot; see the module's errors."""
    name = check_free("volume", request.name, inventory.volume_names)
    placement.check_processors(request.processors)
    refuse_repeats("log device", request.log_devices)
    processors = placement.choose_processors(request.processors, inventory.processors, inventory.load)
    lengths = partition_lengths(snapshot.size, source.partition_size)
    allocator = SpaceAllocator(inventory)
    return VolumePlan(
        name=name,
        size=snapshot.size,
        partition_size=source.partition_size,
        partitions=tuple(
            Partition(number, processors[number % len(processors)], ()) for number, _ in enumerate(lengths)
        ),
        logs=plan_logs(
            allocator,
            name,
            snapshot.size,
            source.partition_size,
            len(processors),
            request.log_devices,
            LOG_FACTOR,
        ),
        new_devices=tuple(allocator.made),
        when_full=request.when_full,
        source=CloneSource(source.id, snapshot.epoch),
    )
