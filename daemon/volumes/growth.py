"""The verb that makes a volume larger, while it is in use.

How it works      1. plan     (pure) where the new partitions go;
                  2. make     the sparse files that the plan asks for, recorded as 'adding';
                  3. record   size, partitions and extents in one transaction of the catalog;
                  4. engine   serves what is new, and shows the new size to those who connect from now on.
Owner and locks   The caller holds the volume's lock. What is placed on devices that are there is planned and
                  recorded under one hold of `catalog_lock`.
Durability        Catalog first: were the engine first, a host could write to a place that after a crash
                  belongs to nobody. A kill before step 3 leaves the volume as it was, and the next start
                  removes the files; after it the next start serves the larger volume.
Errors            NotLarger, VolumeNotServed, EngineFailed and those of plans; what was begun is undone.
"""

from typing import TYPE_CHECKING

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.volumes import VolumeGrow
from polyvol.daemon.volumes.log_areas import LogAreas, inventory
from polyvol.mapping.plans.growth import plan_growth
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size
from polyvol.mapping.specs import volume_spec

if TYPE_CHECKING:
    from polyvol.engine import VolumeRules


def grow_in_engine(context: Context, volume: Volume) -> None:
    """Have the engine serve a volume as large as the catalog says. The caller holds its lock."""
    catalog = context.catalog
    spec = volume_spec(catalog, volume, context.state_dir)
    rules: VolumeRules = {"log_rules": spec["log_rules"], "snapshots": [*spec["snapshots"]]}
    with context.engine_errors(f"having volume {volume.name} grow"):
        context.engine.grow_volume(spec)
    # It has grown, whether what follows succeeds or not; the next start does it otherwise.
    if any(each["log_rules"] for each in (rules, *rules["snapshots"])):
        with isolate(context, f"setting the log rules of volume {volume.name}", volume=volume.name):
            # processors that are new in it take turns, too
            context.engine.set_log_rules(volume.id, rules)
    with isolate(context, f"recording the manifests of volume {volume.name}", volume=volume.name):
        catalog.volumes.set_manifests(volume.id, len(spec["partitions"]))


def grow_volume(context: Context, log_areas: LogAreas, volume: Volume, request: VolumeGrow) -> None:
    """Make a volume larger that is served. The caller holds its lock."""
    catalog, name = context.catalog, volume.name
    log_areas.settle(volume)
    before = catalog.volumes.partitions(volume.id)
    made: dict[int, Device] = {}
    try:
        with context.catalog_lock:
            plan = plan_growth(volume, before, request.size, request.devices, inventory(context))
            context.grow_processors(max(plan.processors) + 1)
            for new in plan.new_devices:
                made[new.id] = log_areas.record_file(volume, new)
            if not made:
                catalog.volumes.record_growth(volume, plan.size, plan.partitions, {})
        for device in made.values():
            log_areas.make_file(device)
        ids = {number: device.id for number, device in made.items()}
        if made:
            with context.catalog_lock:
                catalog.volumes.record_growth(volume, plan.size, plan.partitions, ids)
        try:
            grow_in_engine(context, context.find_volume(name))
        except BaseException:
            # Else the next reload or start has the engine grow too.
            with isolate(context, f"undoing the growth of volume {name}", volume=name), context.catalog_lock:
                catalog.volumes.undo_growth(volume, before, ids)
            raise
    except BaseException:
        log_areas.done_with(made.values())
        log_areas.settle(volume)
        raise
    log_areas.done_with(made.values())
    text = f"volume {name} has grown from {format_size(volume.size)} to {format_size(plan.size)}"
    context.events.add("info", text, volume=name)
