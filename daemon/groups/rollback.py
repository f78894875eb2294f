"""Rollback: returns a volume, or all volumes of a group's snapshot, to the contents of a snapshot.

How it works      The exports of the volumes end; the coordinator makes a cut, which drains writes and
                  preserves the present contents as a snapshot, and records everything in one transaction; the
                  engine executes it, in a time that depends on the number of partitions, not of blocks; the
                  volumes are exported again.
Invariants        GB1 no client is connected to a volume that is rolled back; GB2 a volume whose rollback is
                  in the catalog but failed in the engine is not exported, because hosts would read the old
                  contents.
Owner and locks   The locks of all volumes that are rolled back, from the first check to their exports.
Durability        All or nothing, over all volumes: see the coordinator. Newer snapshots stay.
Errors            UnknownVolume, UnknownSnapshot, UnknownGroup, VolumeNotServed, VolumeOpen, NameInUse,
                  CutFailed, SnapshotInGroup.
"""

import itertools
from collections.abc import Sequence
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.errors import EngineFailed, VolumeOpen, counted_clients
from polyvol.daemon.groups.verbs import Groups
from polyvol.daemon.isolation import isolate
from polyvol.daemon.left_over import coordinator
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.groups import RollbackStart, RollbackView
from polyvol.daemon.volumes.exporting import end_export, ended
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.mapping.names import check_free
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import export_name

Members = Sequence[tuple[Volume, SnapshotRecord]]
_NAME_MAX = 40
_TRIES = 20


class Rollbacks:
    """The verbs of rollback."""

    def __init__(self, context: Context, volumes: Volumes, snapshots: Snapshots, groups: Groups) -> None:
        self._context = context
        self._volumes = volumes
        self._snapshots = snapshots
        self._groups = groups
        self._coordinator = coordinator(context)

    def roll_back(self, volume_name: str, name: str, request: RollbackStart) -> RollbackView:
        """Roll a volume back to its snapshot."""
        with self._context.holding_served(volume_name, "snapshot rollback") as volume:
            record = self._context.find_undeleted(volume, name)
            return self._roll_back([(volume, record)], name, request, None)

    def roll_back_group(self, group_name: str, name: str, request: RollbackStart) -> RollbackView:
        """Roll all volumes of a group's snapshot back to it."""
        with self._groups.holding_snapshot(group_name, name, "snapshot rollback") as members:
            group = self._context.find_group(group_name)
            for volume, record in members:
                self._context.refuse_not_served(volume)
                self._context.refuse_deleted(volume, record)
            return self._roll_back(members, name, request, group)

    def abandon_restore(self, volume: Volume, base: SnapshotRecord, restore: RestoreRecord) -> None:
        """Roll a volume back to its contents before the restore to it began, and end that restore. It has no
        export. The caller holds its lock."""
        context = self._context
        try:
            with context.engine_errors(f"rolling back to {base.name}"):
                self._coordinator.roll_back([(volume, base)], None, abandoned=restore)
            context.rewritten[volume.id] += 1
        except EngineFailed as error:
            context.rewritten[volume.id] += 1
            context.events.add("warning", error.message)  # the next load of the volume completes it
        finally:
            self._export(volume)

    def _export(self, volume: Volume) -> None:
        """Export a volume whose rollback is complete or was not recorded (GB2); otherwise have the engine
        load the volume again, which completes the rollback."""
        context = self._context
        with isolate(context, f"exporting volume {volume.name}", partial(self._volumes.serve_again, volume)):
            if self._is_pending(volume):
                self._volumes.serve_again(volume, "its rollback is not done yet")
            else:
                self._volumes.export_live(context.find_volume(volume.name))

    def _roll_back(
        self, members: Members, name: str, request: RollbackStart, group: Group | None
    ) -> RollbackView:
        context = self._context
        volumes = [volume for volume, _ in members]
        safety = self._safety_name(volumes, name, request, group) if request.safety else None
        with ended(volumes, partial(self._end_export, force=request.force), self._volumes.export_again):
            pass  # of all, or of none (GB1)
        failed: EngineFailed | None = None
        try:
            with context.engine_errors(f"rolling back to {name}"):
                self._coordinator.roll_back(members, safety, None if group is None else group.id)
            context.rewritten.update(volume.id for volume in volumes)
        except EngineFailed as error:
            failed = error  # the catalog has it, so the next load of the volumes completes it
            context.rewritten.update(volume.id for volume in volumes)
        finally:
            for volume in volumes:
                self._export(volume)
        if failed is not None:
            if not all(context.is_served(context.find_volume(volume.name)) for volume in volumes):
                raise failed
            context.events.add("warning", f"{failed.message}; then it was done")
        for volume, record in members:
            kept = "" if safety is None else f"; what it was is {export_name(volume.name, safety)}"
            text = f"volume {volume.name} was rolled back to {export_name(volume.name, record.name)}{kept}"
            context.events.add("info", text, volume=volume.name, SNAPSHOT=record.name)
        return RollbackView(volumes=[volume.name for volume in volumes], snapshot=name, safety=safety)

    def _is_pending(self, volume: Volume) -> bool:
        """Whether the catalog knows of a rollback that the engine has not done."""
        with self._context.engine_errors(f"asking for volume {volume.name}"):
            epoch = self._context.engine.volume_stats(volume.id)["epoch"]
        return any(one.at >= epoch for one in self._context.catalog.rollbacks.of(volume.id))

    def _safety_name(
        self, volumes: Sequence[Volume], name: str, request: RollbackStart, group: Group | None
    ) -> str:
        catalog = self._context.catalog
        taken = self._snapshots.names_of_group(group)
        taken |= {name for volume in volumes for name in catalog.snapshots.names(volume.id)}
        if request.safety_name is not None:
            shown = export_name(volumes[0].name, request.safety_name)
            return check_free("snapshot", request.safety_name, taken, shown)
        wanted = f"before-{name}"[:_NAME_MAX]
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(each for each in names if each not in taken)

    def _end_export(self, volume: Volume, *, force: bool) -> None:
        """End the export of a volume itself; its snapshots' stay."""
        clients = 0
        for _ in range(_TRIES if force else 1):
            if force:
                self._context.engine.disconnect(volume.name)
            clients = end_export(self._context, volume.name)
            if not clients:
                return
        raise VolumeOpen(name=volume.name, **counted_clients(clients))
