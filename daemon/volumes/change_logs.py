"""The verbs of change logs: add, and queries of their use.

How it works      add: plan (pure); make the sparse file if no device was named, recorded as 'adding'; record
                  the logs in the catalog; hand them to the engine, which uses them at once.
Owner and locks   The caller holds the volume's lock. A log is planned and recorded under one hold of
                  `catalog_lock`, unless a file is made for it alone.
Durability        Once a log is recorded, the next start serves it. A file whose log was not is removed then.
Errors            mapping/errors.py, VolumeNotServed, EngineFailed; what was begun is undone.
"""

import contextlib
from collections.abc import Iterable, Sequence
from uuid import uuid4

from polyvol.daemon.context import Context, devices_of
from polyvol.daemon.devices import files as device_files
from polyvol.daemon.devices.health import unusable_devices
from polyvol.daemon.fill_level import FillLevel
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.change_logs import LogAdd, LogView, SpaceView
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.extent import Extent, total
from polyvol.mapping.plans.change_logs import plan_added_logs, plan_log
from polyvol.mapping.plans.inventory import Inventory, NewDevice
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import exact_size
from polyvol.mapping.specs import log_spec, volume_rules


class ChangeLogs:
    """The verbs of change logs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._underway: set[int] = set()
        """Devices that are being made now. Changed under `catalog_lock`."""

    def settle(self, volume: Volume) -> None:
        """Remove files that were being made for this volume, for a log or for growth, and are not used. The
        caller holds its lock."""
        self._settle({volume.id: volume})

    def settle_all(self) -> None:
        """At start: the same for all volumes that are not being removed."""
        volumes = self._context.catalog.volumes.all()
        self._settle({volume.id: volume for volume in volumes if volume.state == "ready"})

    def half_made(self) -> set[int]:
        """The ids of the volumes that have such files."""
        context = self._context
        with context.catalog_lock:
            return {
                device.made_for
                for device in context.catalog.devices.all()
                if device.made_for is not None and device.state == "adding"
                if device.id not in self._underway
            }

    def _settle(self, volumes: dict[int, Volume]) -> None:
        with self._context.catalog_lock:
            underway = set(self._underway)
        for device in self._context.catalog.devices.all():
            volume = None if device.made_for is None else volumes.get(device.made_for)
            if volume is not None and device.state == "adding" and device.id not in underway:
                what = f"removing file {device.path}, which was half made for volume {volume.name},"
                with isolate(self._context, what, volume=volume.name):
                    self.unmake_file(device)

    def add(self, volume: Volume, request: LogAdd) -> None:
        """Give a volume that is served more room, while it is in use. The caller holds its lock."""
        context, name = self._context, volume.name
        self.settle(volume)
        present = sum(total(log.extents) for log in context.catalog.change_logs.of(volume.id))
        with context.catalog_lock:
            plan = plan_added_logs(volume, request.devices, request.size, present, inventory(context))
            if plan.new_device is None:
                made, logs = None, self._record(volume, plan.extents, default=True)
            else:
                made, logs = self.record_file(volume, plan.new_device), []
        try:
            if made is not None:
                self.make_file(made)
                with context.catalog_lock:
                    logs = self._record(volume, plan.extents, default=True, made=made)
            self._use(volume, logs)
        except BaseException:
            self.done_with([] if made is None else [made])
            if made is not None:
                with isolate(context, f"removing file {made.path} again", volume=name):
                    self.unmake_file(made)
            raise
        self.done_with([] if made is None else [made])
        more = exact_size(sum(total(log.extents) for log in logs))
        context.events.add("info", f"volume {name} has {more} more room in its change logs", volume=name)

    def on_device(self, volume: Volume, device: Device) -> int:
        """The number of the volume's change log on this device; made if there is none yet."""
        for log in self._context.catalog.change_logs.of(volume.id):
            if {extent.device for extent in log.extents} == {device.id}:
                return log.number
        with self._context.catalog_lock:
            extents = tuple(plan_log(volume, device, inventory(self._context)))
            logs = self._record(volume, [extents], default=False)
        self._use(volume, logs)
        return logs[0].number

    def views(self, volume: Volume, names: dict[int, str], *, serving: bool) -> list[LogView]:
        """Each log of a volume; its use, while it is served."""
        use: dict[int, tuple[int, int]] = {}
        if serving:
            with contextlib.suppress(self._context.engine_error):  # it may be deleted by now
                stats = self._context.engine.volume_stats(volume.id)
                use = {log["number"]: (log["used_bytes"], log["claimed_bytes"]) for log in stats["logs"]}
        return [log_view(log, names, use) for log in self._context.catalog.change_logs.of(volume.id)]

    def space(self, volume: Volume) -> SpaceView | None:
        """The use of all logs of a volume; None if the volume was deleted."""
        with contextlib.suppress(self._context.engine_error):
            found = self._context.engine.space(volume.id)
            fill_level = self._context.fill_levels.get(volume.id) or FillLevel()
            return fill_level.view(found["used_bytes"], found["size_bytes"])
        return None

    def _record(
        self,
        volume: Volume,
        planned: Iterable[tuple[Extent, ...]],
        *,
        default: bool,
        made: Device | None = None,
    ) -> list[ChangeLog]:
        """Record logs of these extents, in the file that was made for them if one was. Under
        `catalog_lock`."""
        identity = None if made is None else made.id
        table, logs = self._context.catalog.change_logs, list[ChangeLog]()
        try:
            for extents in planned:
                if made is not None:
                    extents = tuple(Extent(made.id, extent.offset, extent.length) for extent in extents)
                logs.append(table.add(volume, extents, default=default, made=identity))
        except PolyvolError:
            for log in logs:
                table.forget(volume.id, log.number)
            raise
        return logs

    def _use(self, volume: Volume, logs: Sequence[ChangeLog]) -> None:
        """Have the engine use logs that are recorded; those that it refuses are forgotten."""
        context = self._context
        catalog = context.catalog
        processors = [partition.processor for partition in catalog.volumes.partitions(volume.id)]
        present = {log.number for log in logs}
        before = [log for log in catalog.change_logs.of(volume.id) if log.number not in present]
        for done, log in enumerate(logs):
            rules = volume_rules([*before, *logs[: done + 1]], processors)
            try:
                with context.engine_errors(f"adding a change log to volume {volume.name}"):
                    context.engine.add_log(volume.id, log_spec(log), rules)
            except BaseException:
                with context.catalog_lock:
                    for unused in logs[done:]:
                        context.catalog.change_logs.forget(volume.id, unused.number)
                raise

    def record_file(self, volume: Volume, new: NewDevice) -> Device:
        """Record a sparse file that is to be made; it is 'adding' until what is on it is recorded. Under
        `catalog_lock`, with its plan."""
        now = self._context.clock()
        device = self._context.catalog.devices.add(
            Device(0, uuid4(), new.name, new.path, "file", False, new.size, True, volume.id, "adding", now)
        )
        self._underway.add(device.id)
        return device

    def make_file(self, device: Device) -> None:
        """Make a file that is recorded."""
        device_files.make(self._context, device, self._context.path(device))

    def done_with(self, devices: Iterable[Device]) -> None:
        """These are made no more: what is not recorded of them can be settled."""
        with self._context.catalog_lock:
            self._underway -= {device.id for device in devices}

    def unmake_file(self, device: Device) -> None:
        """Remove a file that was made for nothing."""
        device_files.unmake(self._context, device)
        with self._context.catalog_lock:
            self._context.catalog.devices.forget(device.id)


def inventory(context: Context) -> Inventory:
    """What there is to plan with."""
    with context.reading():
        names = {volume.id: volume.name for volume in context.catalog.volumes.all()}
        users = context.catalog.devices.users()
        return Inventory(
            devices={device.name: device for device in context.catalog.devices.all()},
            unusable=unusable_devices(context),
            used=context.catalog.devices.used_extents,
            volumes_on=lambda device: [names[user] for user in users.get(device, ())],
            volume_names=set(names.values()),
            load=context.catalog.volumes.processor_load(),
            processors=context.default_processors,
        )


def log_view(log: ChangeLog, names: dict[int, str], use: dict[int, tuple[int, int]]) -> LogView:
    """A change log as a user sees it; `use`: what is used and what is claimed, by number."""
    used, claimed = use.get(log.number, (None, None))
    return LogView(
        number=log.number,
        default=log.default,
        devices=devices_of(log.extents, names),
        size=total(log.extents),
        used=used,
        claimed=claimed,
    )
