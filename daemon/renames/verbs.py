"""Renames: the verbs that give a volume, snapshot, device, group or schedule another name.

How it works      Everything but people, clients and their settings knows objects by id or UUID, so a rename
                  is one transaction of the catalog. Exports end before it and are made again after it
                  (exports.py), which is refused while clients are connected. A snapshot of a group is renamed
                  as a whole, with its members.
Invariants        NM3 what can be refused is refused before anything changes; NM4 a name is free in the moment
                  in which it is given.
Owner and locks   What a verb may be doing with the object by its old name excludes a rename: of a volume or
                  snapshot, the volume's lock; of a device, its lock; of a group, its lock and those of the
                  volumes in it and in its snapshots; of a schedule, the lock of its volume or group, because
                  a snapshot that is being made records the schedule's name. Names are compared and changed
                  under `catalog_lock`.
Durability        After a kill the object has the old name or the new one, with all that belongs to it.
Errors            BadName, NameInUse, the errors for what does not exist, VolumeInUse, SnapshotInUse,
                  SnapshotInGroup, Restoring, VolumeNotServed and DeviceNotReady (for what is being deleted),
                  ScheduleHasNamesake, and those of the locks.
"""

from contextlib import AbstractContextManager
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.errors import SnapshotInUse, VolumeInUse, counted_clients
from polyvol.daemon.groups.verbs import Groups, Members
from polyvol.daemon.renames.exports import Exported, exports_ended, name_of
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.renames import ExportRenamed, Rename, Renamed
from polyvol.daemon.volumes.serving import Serving
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.mapping.errors import DeviceNotReady, NameInUse, PolyvolError, UnknownDevice
from polyvol.mapping.names import check_name
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.errors.groups import SnapshotInGroup, UnknownGroup
from polyvol.snapshot.errors.schedules import ScheduleHasNamesake, UnknownSchedule
from polyvol.snapshot.snapshot import export_name


class Renames:
    """The verbs that rename."""

    def __init__(
        self, context: Context, volumes: Volumes, serving: Serving, snapshots: Snapshots, groups: Groups
    ) -> None:
        self._context = context
        self._volumes = volumes
        self._serving = serving
        self._snapshots = snapshots
        self._groups = groups

    def volume(self, name: str, request: Rename) -> Renamed:
        """Rename a volume that no client is connected to; its snapshots' exports are renamed with it."""
        context, new = self._context, check_name("volume", request.name)
        with context.holding(name, "volume rename") as volume:
            self._refuse_changing(volume)
            records = context.catalog.snapshots.of(volume.id)
            exported: list[Exported] = [(volume, None), *((volume, record) for record in records)]
            self._free_volume(new)
            with (
                exports_ended(context, self._volumes, exported, partial(_volume_in_use, name)),
                context.catalog_lock,
            ):
                self._free_volume(new)  # NM4
                context.catalog.renames.volume(volume.id, new)
            done = [
                ExportRenamed(old=name_of(each), name=new + name_of(each).removeprefix(name))
                for each in exported
            ]
            served = context.is_served(volume)
            renamed = self._done(Renamed(noun="volume", old=name, name=new, exports=done), volume=new)
        if not served:
            self._serving.serve_waiting()  # why it is not served may name it
        return renamed

    def snapshot(self, volume_name: str, name: str, request: Rename) -> Renamed:
        """Rename a snapshot that no client is connected to, and that is not part of a group's."""
        new = check_name("snapshot", request.name)
        with self._context.holding(volume_name, "snapshot rename") as volume:
            record = self._context.find_snapshot(volume, name)
            old = export_name(volume_name, name)
            whole = self._snapshots.whole_name(record)
            if whole is not None:
                raise SnapshotInGroup(name=old, whole=whole)
            done = self._rename_cut([(volume, record)], old, new)
            renamed = Renamed(noun="snapshot", old=old, name=export_name(volume_name, new), exports=done)
            return self._done(renamed, volume=volume_name, SNAPSHOT=new)

    def group_snapshot(self, group_name: str, name: str, request: Rename) -> Renamed:
        """Rename a snapshot of a group, with those that it is made of; no client is connected to them."""
        new = check_name("snapshot", request.name)
        with self._groups.holding_snapshot(group_name, name, "snapshot rename") as members:
            if new in self._snapshots.names_of_group(self._context.find_group(group_name)):
                raise NameInUse(noun="snapshot", name=f"@{group_name}@{new}")
            old = f"@{group_name}@{name}"
            done = self._rename_cut(members, old, new)
            renamed = Renamed(noun="snapshot", old=old, name=f"@{group_name}@{new}", exports=done)
            return self._done(renamed, GROUP=group_name, SNAPSHOT=new)

    def _rename_cut(self, members: Members, old: str, new: str) -> list[ExportRenamed]:
        """Rename all snapshots of a cut; the caller holds the locks of their volumes."""
        context = self._context
        for volume, _ in members:
            self._refuse_changing(volume)
            if new in context.catalog.snapshots.names(volume.id):
                raise NameInUse(noun="snapshot", name=export_name(volume.name, new))
        with exports_ended(context, self._volumes, members, partial(_snapshot_in_use, old)):
            uuids = [record.uuid for _, record in members]
            context.catalog.renames.snapshots(uuids, new, members[0][1].cut)
        return [ExportRenamed(old=name_of(each), name=export_name(each[0].name, new)) for each in members]

    def device(self, name: str, request: Rename) -> Renamed:
        """Rename a device, whether it is there or missing: nothing on it has its name."""
        context, new = self._context, check_name("device", request.name)
        found = context.find_device(name)
        with context.holding_device(found, "device rename"):
            with context.catalog_lock:
                device = context.find_device(name)
                if device.id != found.id:  # it was removed, and another one has its name
                    raise UnknownDevice(name=name)
                if device.unfinished is not None:
                    raise DeviceNotReady(name=name, reason=device.unfinished)
                if context.catalog.devices.find(new) is not None:
                    raise NameInUse(noun="device", name=new)
                context.catalog.renames.device(device.id, new)
            renamed = self._done(Renamed(noun="device", old=name, name=new, exports=[]), DEVICE=new)
        if context.volume_trouble:
            self._serving.serve_waiting()  # why a volume is not served may name it
        return renamed

    def group(self, name: str, request: Rename) -> Renamed:
        """Rename a group; its snapshots and schedules stay its own."""
        context, new = self._context, check_name("group", request.name)
        found = self._context.find_group(name)
        with (
            context.holding_group(found, "group rename"),
            context.holding_all(self._volumes_of(found), "group rename"),
        ):
            with context.catalog_lock:
                if (
                    self._context.find_group(name).id != found.id
                ):  # it was deleted, and another one has its name
                    raise UnknownGroup(name=name)
                if context.catalog.groups.find(new) is not None:
                    raise NameInUse(noun="group", name=new)
                context.catalog.renames.group(found.id, new)
            return self._done(Renamed(noun="group", old=name, name=new, exports=[]), GROUP=new)

    def _volumes_of(self, group: Group) -> list[Volume]:
        """The volumes that are in a group, or that its snapshots are of."""
        catalog = self._context.catalog
        with self._context.reading():
            cuts = {whole.cut for whole in catalog.groups.snapshots(group.id)}
            ids = {*group.volumes, *(each.volume for each in catalog.snapshots.all() if each.cut in cuts)}
            return [volume for volume in catalog.volumes.all() if volume.id in ids]

    def schedule(self, name: str, request: Rename) -> Renamed:
        """Rename a schedule; its snapshots stay its own, and keep their names."""
        context, new = self._context, check_name("schedule", request.name)
        found = self._find_schedule(name)
        with self._target_held(found):
            with context.catalog_lock:
                if self._find_schedule(name).id != found.id:  # likewise
                    raise UnknownSchedule(name=name)
                if context.catalog.schedules.find(new) is not None:
                    raise NameInUse(noun="schedule", name=new)
                if context.catalog.renames.made_by(found, new):
                    raise ScheduleHasNamesake(name=new)
                context.catalog.renames.schedule(found, new)
            return self._done(Renamed(noun="schedule", old=name, name=new, exports=[]), SCHEDULE=new)

    def _target_held(self, schedule: Schedule) -> AbstractContextManager[object]:
        """The lock that a snapshot of the schedule's volume or group has."""
        context, what = self._context, "schedule rename"
        if schedule.group is not None:
            group = context.catalog.groups.get(schedule.group)
            if group is not None:
                return context.holding_group(group, what)
        elif schedule.volume is not None:
            volume = context.catalog.volumes.get(schedule.volume)
            if volume is not None:
                return context.holding_all([volume], what)
        raise UnknownSchedule(name=schedule.name)  # it went with its volume or group

    def _find_schedule(self, name: str) -> Schedule:
        schedule = self._context.catalog.schedules.find(name)
        if schedule is None:
            raise UnknownSchedule(name=name)
        return schedule

    def _refuse_changing(self, volume: Volume) -> None:
        """VolumeNotServed of a volume that is being deleted, Restoring of one that is being restored."""
        if volume.state != "ready":
            self._context.refuse_not_served(volume, restoring=True)
        if volume.restoring:
            raise self._context.restoring_error(volume)

    def _free_volume(self, name: str) -> None:
        """NameInUse if there is a volume of this name, be it one that is being made or deleted."""
        if self._context.catalog.volumes.find(name) is not None:
            raise NameInUse(noun="volume", name=name)

    def _done(self, renamed: Renamed, *, volume: str | None = None, **fields: str) -> Renamed:
        """Say so."""
        text = f"{renamed.noun} {renamed.old} was renamed to {renamed.name}"
        self._context.events.add("info", text, volume=volume, **fields)
        return renamed


def _volume_in_use(name: str, clients: int) -> PolyvolError:
    return VolumeInUse(name=name, **counted_clients(clients))


def _snapshot_in_use(name: str, clients: int) -> PolyvolError:
    return SnapshotInUse(name=name, **counted_clients(clients))
