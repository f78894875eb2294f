"""The verbs of groups, of their snapshots, and of holds.

How it works      A group's snapshot is one cut over its volumes; its members are the snapshots of that cut.
                  It is made, held, released and deleted as a whole: in the catalog each of these is one
                  transaction. What acts on a whole snapshot of a group (`find_snapshot`) gets its members,
                  with their volumes, as they were at the cut.
Owner and locks   Who is in a group is changed under `catalog_lock`; what acts on a snapshot takes the locks
                  of its volumes. Reading verbs take none.
Errors            UnknownGroup, UnknownGroupSnapshot, GroupEmpty, GroupHasSnapshots, NotInGroup, NotHeld,
                  SnapshotInGroup, and those of snapshots.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.snapshots.taker import SnapshotTaker
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.groups import (
    GroupChange,
    GroupCreate,
    GroupDeleted,
    GroupSnapshotCreate,
    GroupSnapshotDeleted,
    GroupSnapshotView,
    GroupView,
)
from polyvol.daemon.types.snapshots import HoldChange, SnapshotView
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.names import check_free, check_name, refuse_repeats
from polyvol.mapping.records.groups import Group, GroupSnapshot
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import counted
from polyvol.snapshot.errors.groups import (
    GroupHasSnapshots,
    NotInGroup,
    SnapshotInGroup,
    UnknownGroup,
    UnknownGroupSnapshot,
    VolumeInGroup,
)
from polyvol.snapshot.errors.holds import NotHeld, VolumeHeld
from polyvol.snapshot.snapshot import export_name

_log = logging.getLogger("polyvol")
Members = list[tuple[Volume, SnapshotRecord]]


class Groups:
    """The verbs of groups."""

    def __init__(self, context: Context, snapshots: Snapshots, taker: SnapshotTaker) -> None:
        self._context = context
        self._snapshots = snapshots
        self._taker = taker

    def create(self, request: GroupCreate) -> GroupView:
        """Make a group."""
        context = self._context
        refuse_repeats("volume", request.volumes)
        with context.catalog_lock:
            check_free("group", request.name, {each.name for each in context.catalog.groups.all()})
            group = context.catalog.groups.create(request.name, self._volumes(request.volumes))
        view = self._view(group)
        _log.info("group %s was created", request.name, extra={"GROUP": request.name})
        return view

    def change(self, name: str, request: GroupChange) -> GroupView:
        """Have volumes join a group, and others leave it. Its snapshots stay as they are."""
        refuse_repeats("volume", [*request.join, *request.leave])
        with self._context.catalog_lock:
            group = self._context.find_group(name)
            leaving = self._volumes(request.leave)
            for wanted, volume in zip(request.leave, leaving, strict=True):
                if volume not in group.volumes:
                    raise NotInGroup(volume=wanted, name=name)
            group = self._context.catalog.groups.change(group, self._volumes(request.join), leaving)
        view = self._view(group)
        for verb, named in (("joined", request.join), ("left", request.leave)):
            for each in named:
                fields = {"GROUP": name, "VOLUME": each}
                _log.info("volume %s %s group %s", each, verb, name, extra=fields)
        return view

    def delete(self, name: str) -> GroupDeleted:
        """Delete a group that has no snapshots, with its schedules. Its volumes stay."""
        found = self._context.find_group(name)
        with self._context.holding_group(found, "group delete") as group, self._context.catalog_lock:
            if group.name != name:  # it was renamed meanwhile
                raise UnknownGroup(name=name)
            snapshots = self._context.catalog.groups.snapshots(group.id)
            if snapshots:
                raise GroupHasSnapshots(name=name, snapshots=counted(len(snapshots), "snapshot"))
            schedules = self._schedules(group)
            self._context.catalog.groups.forget(group.id)
        _log.info("group %s was deleted", name, extra={"GROUP": name})
        return GroupDeleted(name=name, schedules=schedules)

    @reads
    def list_all(self) -> list[GroupView]:
        """All groups."""
        return [self._view(group) for group in self._context.catalog.groups.all()]

    @reads
    def show(self, name: str) -> GroupView:
        """One group."""
        return self._view(self._context.find_group(name))

    # Their snapshots

    def take(self, name: str, request: GroupSnapshotCreate) -> GroupSnapshotView:
        """Take one cut of all volumes that are in a group now."""
        group = self._context.find_group(name)
        members = self._taker.take_of_group(group, request)
        now = self._context.catalog.groups.get(group.id) or group  # it may have been renamed while hooks ran
        return _snapshot_view(now, members)

    @reads
    def snapshots(self, name: str) -> list[GroupSnapshotView]:
        """The snapshots of a group, oldest first."""
        group = self._context.find_group(name)
        views: dict[str, list[SnapshotView]] = {}
        for view in self._snapshots.list_all():
            views.setdefault(view.cut, []).append(view)
        wholes = self._context.catalog.groups.snapshots(group.id)
        return [_snapshot_view(group, views[str(each.cut)]) for each in wholes if str(each.cut) in views]

    def show_snapshot(self, name: str, snapshot: str) -> GroupSnapshotView:
        """One snapshot of a group."""
        for view in self.snapshots(name):
            if view.name == snapshot:
                return view
        raise UnknownGroupSnapshot(group=name, name=snapshot)

    def delete_snapshot(self, name: str, snapshot: str) -> GroupSnapshotDeleted:
        """Delete a snapshot of a group as a whole."""
        with self.holding_snapshot(name, snapshot, "snapshot delete") as members:
            freed = self._snapshots.delete_cut(members)
        for volume, _ in members:
            fields = {"GROUP": name, "VOLUME": volume.name, "SNAPSHOT": snapshot}
            _log.info("snapshot %s@%s was deleted", volume.name, snapshot, extra=fields)
        volumes = [volume.name for volume, _ in members]
        return GroupSnapshotDeleted(group=name, name=snapshot, volumes=volumes, freed=freed)

    @contextmanager
    def holding_snapshot(self, name: str, snapshot: str, what: str) -> Iterator[Members]:
        """Hold the locks of all volumes of a group's snapshot; its members as they are then."""
        whole, members = self.find_snapshot(name, snapshot)
        with self._context.holding_all([volume for volume, _ in members], what):
            now, members = self.find_snapshot(name, snapshot)
            if now.cut != whole.cut:  # it was deleted, and another one has its name
                raise UnknownGroupSnapshot(group=name, name=snapshot)
            yield members

    @reads
    def find_snapshot(self, name: str, snapshot: str) -> tuple[GroupSnapshot, Members]:
        """A snapshot of a group and its members, whichever volumes are in the group now; or
        UnknownGroupSnapshot."""
        catalog = self._context.catalog
        group = self._context.find_group(name)
        for whole in catalog.groups.snapshots(group.id):
            if whole.name == snapshot:
                record = next((each for each in catalog.snapshots.all() if each.cut == whole.cut), None)
                if record is not None:
                    return whole, self._snapshots.members(record)
        raise UnknownGroupSnapshot(group=name, name=snapshot)

    # Holds

    def hold_snapshot(self, name: str, snapshot: str, request: HoldChange) -> GroupSnapshotView:
        """Hold a snapshot of a group as a whole, or release it."""
        with self.holding_snapshot(name, snapshot, "snapshot hold") as members:
            self._change_hold(f"@{name}@{snapshot}", members, request)
            return self.show_snapshot(name, snapshot)

    def hold(self, volume_name: str, name: str, request: HoldChange) -> SnapshotView:
        """Hold a snapshot of a volume, or release it."""
        with self._context.holding(volume_name, "snapshot hold") as volume:
            record = self._context.find_snapshot(volume, name)
            export = export_name(volume_name, name)
            whole = self._snapshots.whole_name(record)
            if whole is not None:
                raise SnapshotInGroup(name=export, whole=whole)
            self._change_hold(export, [(volume, record)], request)
            return self._snapshots.show(volume_name, name, partitions=False)

    def _change_hold(self, name: str, members: Members, request: HoldChange) -> None:
        catalog = self._context.catalog
        check_name("hold", request.tag)
        snapshots = [record.uuid for _, record in members]
        if not request.release:
            catalog.snapshots.hold(snapshots, request.tag)
        elif all(request.tag not in record.holds for _, record in members):
            raise NotHeld(name=name, tag=request.tag)
        else:
            catalog.snapshots.release(snapshots, request.tag)
        verb = "released from" if request.release else "held by"
        for volume, record in members:
            fields = {"VOLUME": volume.name, "SNAPSHOT": record.name, "TAG": request.tag}
            export = export_name(volume.name, record.name)
            _log.info("snapshot %s is %s %s", export, verb, request.tag, extra=fields)

    @reads
    def refuse_delete(self, volume: Volume) -> None:
        """Refuse to delete a volume that a group, a snapshot of one, or a hold needs."""
        catalog = self._context.catalog
        names = {}
        for group in catalog.groups.all():
            names[group.id] = group.name
            if volume.id in group.volumes:
                cure = f"`polyvol group leave {group.name} {volume.name}`"
                raise VolumeInGroup(name=volume.name, what=f"group {group.name}", cure=cure)
        records = catalog.snapshots.of(volume.id)
        cuts = {record.cut for record in records}
        for whole in catalog.groups.snapshots():
            if whole.cut in cuts:
                export = f"@{names[whole.group]}@{whole.name}"
                cure = f"`polyvol snapshot delete {export}`"
                raise VolumeInGroup(name=volume.name, what=f"snapshot {export}", cure=cure)
        held = [record.name for record in records if record.holds]
        if held:
            raise VolumeHeld(name=volume.name, snapshots=", ".join(held))

    def _volumes(self, names: Sequence[str]) -> list[VolumeId]:
        found: list[VolumeId] = []
        for name in names:
            volume = self._context.find_volume(name)
            if volume.state != "ready":  # it is being made or deleted
                self._context.refuse_not_served(volume, restoring=True)
            found.append(volume.id)
        return found

    def _schedules(self, group: Group) -> list[str]:
        schedules = self._context.catalog.schedules.all()
        return [schedule.name for schedule in schedules if schedule.group == group.id]

    @reads
    def _view(self, group: Group) -> GroupView:
        catalog = self._context.catalog
        names = {volume.id: volume.name for volume in catalog.volumes.all()}
        return GroupView(
            name=group.name,
            uuid=str(group.uuid),
            volumes=[names[volume] for volume in group.volumes if volume in names],
            snapshots=[each.name for each in catalog.groups.snapshots(group.id)],
            schedules=self._schedules(group),
            created=iso(group.created_ns),
        )


def _snapshot_view(group: Group, members: list[SnapshotView]) -> GroupSnapshotView:
    first = members[0]
    ready = all(member.consistency == "application" for member in members)
    return GroupSnapshotView(
        group=group.name,
        name=first.name,
        export=f"@{group.name}@{first.name}",
        cut=first.cut,
        created=first.created,
        future=first.future,
        stall_ns=first.stall_ns,
        durable_ns=first.durable_ns,
        origin=first.origin,
        schedule=first.schedule,
        holds=first.holds,
        consistency="application" if ready else "crash",
        members=members,
    )
