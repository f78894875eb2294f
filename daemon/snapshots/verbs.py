"""The verbs of snapshots: create, delete, list, show.

How it works      create checks the names, makes log areas on the devices that its log rules name, where a
                  volume has none there (catalog first, then engine), and calls the coordinator to take the
                  cut. delete ends the export, removes the snapshot from the catalog, and has the engine free
                  the blocks that only the snapshot referred to. The snapshots of a group's cut are deleted as
                  a whole.
Durability        After a kill between these last two steps, the next start drops the snapshots that the
                  catalog does not have.
Owner and locks   Callers of functions that change a snapshot hold the locks of all its volumes.
Errors            UnknownVolume, UnknownSnapshot, NameInUse, SnapshotInUse, SnapshotHeld, SnapshotInGroup,
                  VolumeNotServed, Restoring, CutFailed and others.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.errors import EngineFailed, SnapshotInUse, counted_clients
from polyvol.daemon.left_over import coordinator
from polyvol.daemon.partitions.counts import parts_of
from polyvol.daemon.partitions.pages import COUNT_MAX
from polyvol.daemon.partitions.verbs import Partitions
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.partitions import PartitionSnapshotView
from polyvol.daemon.types.snapshots import SnapshotDeleted, SnapshotView, SnapshotWanted, StallView
from polyvol.daemon.types.usage import SnapshotUseView
from polyvol.daemon.volumes.exporting import end_export, ended, export_snapshots
from polyvol.daemon.volumes.log_areas import LogAreas, rule_views
from polyvol.daemon.volumes.usage import snapshot_uses
from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import NameInUse, UnknownSnapshot
from polyvol.mapping.names import check_name, check_prefix
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import Origin, SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import Thaw
from polyvol.snapshot.errors.groups import SnapshotInGroup
from polyvol.snapshot.errors.holds import SnapshotHeld
from polyvol.snapshot.snapshot import default_name, export_name
from polyvol.snapshot.timing import SECOND_NS


class Snapshots:
    """The verbs of snapshots."""

    def __init__(self, context: Context, log_areas: LogAreas) -> None:
        self._context = context
        self._partitions = Partitions(context)
        self._log_areas = log_areas
        self._coordinator = coordinator(context)
        self._later = Workers("polyvol-drop")

    @reads
    def check(self, volumes: Sequence[Volume], request: SnapshotWanted, group: Group | None = None) -> None:
        """Do all checks that are possible before the hooks of these volumes are run."""
        if request.name is not None:
            check_name("snapshot", request.name)
        if request.prefix is not None:
            check_prefix(request.prefix)
        for volume in volumes:
            self._context.refuse_not_served(volume)
        self._free_name(request.name, volumes, "", group)
        if texts := _rule_texts(request):
            self._log_areas.check_rules(volumes, texts)

    def create(
        self,
        volumes: Sequence[Volume],
        request: SnapshotWanted,
        *,
        group: Group | None = None,
        schedule: Schedule | None = None,
        thaw: Thaw | None = None,
        lent: AbstractContextManager[None] | None = None,
    ) -> list[SnapshotView]:
        """Take one cut over these volumes, of a group or for a schedule if given. `thaw`, `lent`: see the
        coordinator."""
        context = self._context
        self.check(volumes, request, group)
        prefix = request.prefix if schedule is None else schedule.prefix
        name = self._free_name(request.name, volumes, "" if prefix is None else f"{prefix}-", group)
        texts = _rule_texts(request)
        rules = self._log_areas.rules_of_snapshot(volumes, texts) if texts else {}
        origin: Origin = "schedule" if request.scheduled else "hand"
        records = self._coordinator.take(
            volumes,
            name,
            rules,
            origin,
            schedule=None if schedule is None else schedule.name,
            group=None if group is None else group.id,
            thaw=thaw,
            lent=lent,
        )
        if request.scheduled:
            for volume in volumes:
                with contextlib.suppress(EngineFailed):  # the watch over the change logs does it as well
                    context.ask_when_full(volume)  # the new snapshot can be dropped
        names, clients = context.device_names(), context.clients()
        return [
            self._view(volume, record, names, clients, {})  # to measure it takes longer than the cut
            for volume, record in zip(volumes, records, strict=True)
        ]

    def delete(self, volume_name: str, name: str) -> SnapshotDeleted:
        """Delete a snapshot that no client is connected to."""
        with self._context.holding_served(volume_name, "snapshot delete", restoring=True) as volume:
            record = self._context.find_snapshot(volume, name)
            whole = self.whole_name(record)
            if whole is not None:
                raise SnapshotInGroup(name=export_name(volume.name, name), whole=whole)
            self._refuse_needed([(volume, record)])
            freed = self._delete([(volume, record)], lambda: self._forget(record))
        return SnapshotDeleted(volume=volume.name, name=name, freed=freed)

    def delete_cut(self, members: Sequence[tuple[Volume, SnapshotRecord]]) -> int:
        """Delete a snapshot, or all of a group's, as `members` has it: bytes freed. The caller holds the
        locks of the volumes."""
        for volume, _ in members:
            self._context.find_served(volume.name, restoring=True)
        self._refuse_needed(members)
        catalog, first = self._context.catalog, members[0][1]
        if catalog.groups.of_cut(first.cut) is None:
            return self._delete(members, lambda: self._forget(first))
        return self._delete(members, lambda: catalog.snapshots.forget_cut(first.cut))

    def drop(self, volume: Volume, members: Sequence[tuple[Volume, SnapshotRecord]]) -> int:
        """Delete a snapshot so that writes to a volume continue, and record that; bytes freed in the volume.
        The caller has `room` in the volumes. `members`: the snapshots that are deleted together; space of
        other volumes is freed in the background, because their devices may hang."""
        catalog = self._context.catalog
        members = sorted(members, key=lambda member: member[0].id != volume.id)
        self._refuse_needed(members)
        dropped: list[int] = []

        def forget() -> None:
            dropped.extend(catalog.snapshots.drop([each for _, each in members]))

        freed = self._delete(members, forget, first=volume)
        catalog.snapshots.set_freed(dropped[0], freed)
        return freed

    def _forget(self, record: SnapshotRecord) -> None:
        self._context.catalog.snapshots.forget([record.uuid])

    @reads
    def members(self, record: SnapshotRecord) -> list[tuple[Volume, SnapshotRecord]]:
        """The snapshots that are deleted together with one, itself included: those of a group's cut."""
        catalog = self._context.catalog
        by_id = {volume.id: volume for volume in catalog.volumes.all()}
        if catalog.groups.of_cut(record.cut) is None:
            return [(by_id[record.volume], record)]
        return [(by_id[each.volume], each) for each in catalog.snapshots.all() if each.cut == record.cut]

    @reads
    def whole_name(self, record: SnapshotRecord) -> str | None:
        """The name of the group's snapshot that this one is part of, if it is."""
        whole = self._context.catalog.groups.of_cut(record.cut)
        if whole is None:
            return None
        names = {group.id: group.name for group in self._context.catalog.groups.all()}
        return f"@{names[whole.group]}@{whole.name}"

    @reads
    def _refuse_needed(self, members: Sequence[tuple[Volume, SnapshotRecord]]) -> None:
        for volume, record in members:
            if record.holds:
                name = self.whole_name(record) or export_name(volume.name, record.name)
                raise SnapshotHeld(name=name, tags=", ".join(record.holds))
            self._context.refuse_base(volume, record)

    def _delete(
        self,
        members: Sequence[tuple[Volume, SnapshotRecord]],
        forget: Callable[[], None],
        *,
        first: Volume | None = None,
    ) -> int:
        """End the exports of all members, `forget` them, and free the blocks that only they referred to:
        bytes freed. The engine drops those of volumes that are not served when it loads the volume. Sources
        of clones are pinned. `first`: wait for this volume only."""
        context = self._context
        kept = context.catalog.clones.by_snapshot()
        served = [member for member in members if context.is_served(member[0])]
        with ended(served, self._end_export, self._export_again):
            forget()
        freed, failed = 0, list[EngineFailed]()
        for volume, record in served:
            if (volume.id, record.epoch) in kept:
                continue
            if first is not None and volume.id != first.id:
                self._later.run((volume.id, record.epoch), partial(self._give_back, volume, record))
                continue
            try:
                freed += self._give_back(volume, record)
            except EngineFailed as error:
                failed.append(error)
        if failed:
            raise failed[0]  # when all the others have been dropped
        return freed

    def _give_back(self, volume: Volume, record: SnapshotRecord) -> int:
        """Free the blocks that only a snapshot without a catalog record referred to: bytes freed."""
        export = export_name(volume.name, record.name)
        with self._context.engine_errors(f"giving back the space of snapshot {export}, which is deleted,"):
            return self._context.engine.drop_snapshot(volume.id, record.epoch)

    def _end_export(self, member: tuple[Volume, SnapshotRecord]) -> None:
        volume, record = member
        export = export_name(volume.name, record.name)
        clients = end_export(self._context, export)
        if clients:
            raise SnapshotInUse(name=export, **counted_clients(clients))

    def _export_again(self, member: tuple[Volume, SnapshotRecord]) -> None:
        volume, record = member
        export_snapshots(self._context, volume, [record])

    @reads
    def list_all(self, volume_name: str | None = None, *, parts: bool = False) -> list[SnapshotView]:
        """The snapshots of one volume, or all; with their partition snapshots counted, if `parts`."""
        context = self._context
        names, clients = context.device_names(), context.clients()
        if volume_name is None:
            by_id = {volume.id: volume for volume in context.catalog.volumes.all()}
            records = context.catalog.snapshots.all()
        else:
            volume = context.find_volume(volume_name)
            by_id = {volume.id: volume}
            records = context.catalog.snapshots.of(volume.id)
        uses = snapshot_uses(context, by_id.values())
        records = [record for record in records if record.volume in by_id]
        views = [self._view(by_id[record.volume], record, names, clients, uses) for record in records]
        if not parts:
            return views
        counted = parts_of(context, records, by_id)
        return [replace(view, parts=each) for view, each in zip(views, counted, strict=True)]

    def show(self, volume_name: str, name: str, *, partitions: bool) -> SnapshotView:
        """One snapshot, with its partition snapshots if asked for."""
        if not partitions:
            return self._show(volume_name, name)
        pages, uuids = list[PartitionSnapshotView](), set[str]()
        following: int | None = 0
        while following is not None:
            page = self._partitions.of_snapshot(volume_name, name, following, COUNT_MAX)
            pages += page.partition_snapshots
            uuids.add(page.uuid)
            following = page.next
        view = self._show(volume_name, name)
        if uuids != {view.uuid}:  # it was deleted, and another one has its name
            raise UnknownSnapshot(volume=volume_name, name=name)
        return replace(view, partitions=pages)

    @reads
    def _show(self, volume_name: str, name: str) -> SnapshotView:
        context = self._context
        volume = context.find_volume(volume_name)
        record = self._context.find_snapshot(volume, name)
        uses = snapshot_uses(context, [volume])
        return self._view(volume, record, context.device_names(), context.clients(), uses)

    def names_of_group(self, group: Group | None) -> set[str]:
        """The names of a group's snapshots: the volumes of one need not be in the group any more."""
        if group is None:
            return set()
        return {whole.name for whole in self._context.catalog.groups.snapshots(group.id)}

    def _free_name(
        self, wanted: str | None, volumes: Sequence[Volume], prefix: str, group: Group | None
    ) -> str:
        taken = self.names_of_group(group)
        if group is not None and wanted in taken:
            raise NameInUse(noun="snapshot", name=f"@{group.name}@{wanted}")
        for volume in volumes:
            names = self._context.catalog.snapshots.names(volume.id)
            if wanted in names:
                raise NameInUse(noun="snapshot", name=export_name(volume.name, wanted))
            taken |= names
        if wanted is not None:
            return wanted
        return default_name(datetime.fromtimestamp(self._context.clock() // SECOND_NS, UTC), taken, prefix)

    @reads
    def _view(
        self,
        volume: Volume,
        record: SnapshotRecord,
        names: dict[int, str],
        clients: dict[str, int],
        uses: dict[tuple[int, int], SnapshotUseView],
    ) -> SnapshotView:
        context = self._context
        clones = context.catalog.clones.by_snapshot()
        export = export_name(volume.name, record.name)
        areas = context.catalog.log_areas.of(volume.id) if record.log_rules else []
        named = dict.fromkeys(device for rule in record.log_rules for device in rule.devices)
        numbers = [area.number for area in areas if area.device in named]
        return SnapshotView(
            volume=volume.name,
            name=record.name,
            export=export,
            uuid=str(record.uuid),
            cut=str(record.cut),
            epoch=record.epoch,
            size=record.size,
            log=numbers[0] if len(numbers) == 1 else None,
            log_devices=[names[device] for device in named],
            log_rules=rule_views(record.log_rules, names),
            created=iso(record.instant_ns),
            created_ns=record.instant_ns,
            future=record.instant_ns > context.clock(),
            stall_ns=record.stall_ns,
            stalls=[StallView(processor=processor, stall_ns=stall) for processor, stall in record.stalls],
            durable_ns=record.durable_ns,
            origin=record.origin,
            schedule=record.schedule,
            holds=list(record.holds),
            whole=self.whole_name(record),
            consistency=record.consistency,
            hook_trouble=record.hook_trouble,
            copy_of=None if record.copy_of is None else str(record.copy_of),
            clones=clones.get((volume.id, record.epoch), []),
            use=uses.get((volume.id, record.epoch)),
            connections=clients.get(export, 0),
            deleted=context.was_deleted(record),
            partitions=None,
        )


def _rule_texts(request: SnapshotWanted) -> tuple[str, ...]:
    """The log rules that are asked for."""
    return request.log_devices + (() if request.log_device is None else (request.log_device,))
