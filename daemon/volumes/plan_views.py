"""Plans of volumes, as a user sees them."""

from polyvol.daemon.context import Context, extent_views
from polyvol.daemon.types.volumes import PartitionView, PlannedDevice, PlanView
from polyvol.daemon.volumes.change_logs import log_view
from polyvol.mapping.plans.volumes import VolumePlan


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
        logs=[log_view(log, names, {}) for log in plan.logs],
        partitions=[
            PartitionView(
                number=partition.number,
                processor=partition.processor,
                extents=extent_views(partition.extents, names),
            )
            for partition in plan.partitions
        ],
    )
