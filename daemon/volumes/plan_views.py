"""Plans of volumes: as they are asked for, and as a user sees them."""

from polyvol.daemon.context import Context, extent_views
from polyvol.daemon.types.volumes import PartitionView, PlannedDevice, PlanView, VolumeCreate
from polyvol.daemon.volumes.log_areas import area_view, inventory, rule_views
from polyvol.daemon.volumes.settings import log_limit_of
from polyvol.mapping.plans.places import make_place, parse_place
from polyvol.mapping.plans.volumes import VolumePlan, VolumeRequest, plan_volume


def planned(context: Context, request: VolumeCreate) -> VolumePlan:
    """The plan of a volume that is asked for."""
    wanted = VolumeRequest(
        name=request.name,
        size=request.size,
        partition_size=request.partition_size,
        devices=request.devices,
        log_devices=request.log_devices,
        processors=request.processors,
        base=request.base,
        when_full=request.when_full,
        log_limit=log_limit_of(request.log_limit),
        places=tuple(
            parse_place(place)
            if isinstance(place, str)
            else make_place((place.first, place.last), place.processor, place.devices)
            for place in request.place
        ),
    )
    return plan_volume(wanted, inventory(context))


def plan_view(context: Context, plan: VolumePlan) -> PlanView:
    """A volume as it would be made."""
    names = context.device_names() | {device.id: device.name for device in plan.new_devices}
    return PlanView(
        name=plan.name,
        size=plan.size,
        partition_size=plan.partition_size,
        partition_count=len(plan.partitions),
        processors=plan.processors,
        new_devices=[
            PlannedDevice(name=new.name, path=str(context.state_dir / new.path), size=new.size)
            for new in plan.new_devices
        ],
        logs=[area_view(area, plan.log_rules, names, {}) for area in plan.logs],
        log_rules=rule_views(plan.log_rules, names),
        partitions=[
            PartitionView(
                number=partition.number,
                processor=partition.processor,
                extents=extent_views(partition.extents, names),
            )
            for partition in plan.partitions
        ],
    )
