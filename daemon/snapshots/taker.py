"""Snapshot taker: the only path of a request for a snapshot: hooks, then the cut, then the record.

How it works      The volumes of a snapshot are resolved before the first hook: from then on the volumes,
                  the group and the schedule are records, known by ids and UUIDs that are never reused. If
                  another verb has locked a volume, the taker waits for it first, so that no application is
                  quiesced for nothing. Hooks run without a lock and end as soon as the cut is made: a command
                  that hangs delays only the caller of this snapshot. Under the volumes' locks, the resolved
                  records are compared with the present ones; then snapshots/verbs.py takes the cut.
Invariants        TK1 all refusals that need no cut come before the first hook; TK2 a cut is made only of the
                  resolved volumes: if they changed while hooks ran, the request is refused and thawed.
Owner and locks   The volumes' locks, and the group's for a group snapshot, from the cut's plan to its record.
Errors            Those of snapshots/verbs.py, RepeatedDevice; UnknownVolume, UnknownGroup, UnknownSchedule,
                  GroupChanged, VolumeChanged for changes while hooks ran; HooksFailed if hooks are required:
                  then the cut is undone, so that there is no snapshot.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from polyvol.daemon.context import Context
from polyvol.daemon.errors import BadRequest
from polyvol.daemon.hooks.run import HookRunner
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.snapshots import SnapshotCreate, SnapshotView, SnapshotWanted
from polyvol.mapping.errors import CatalogConflict, UnknownVolume
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import Consistency
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import Thaw
from polyvol.snapshot.errors.cuts import CutFailed
from polyvol.snapshot.errors.groups import GroupChanged, GroupEmpty, UnknownGroup
from polyvol.snapshot.errors.hooks import HooksFailed, VolumeChanged
from polyvol.snapshot.errors.schedules import UnknownSchedule


def required(thaw: Thaw | None, volumes: Sequence[Volume]) -> Thaw:
    """The same, with HooksFailed where hooks have failed; if there are none, at once."""
    names = ", ".join(volume.name for volume in volumes)
    if thaw is None:
        raise HooksFailed(volumes=names, why="no hooks are set, and --require-hooks needs some")

    def checked() -> Mapping[int, tuple[Consistency, str | None]]:
        marks = thaw()
        for _, trouble in marks.values():
            if trouble is not None:
                raise HooksFailed(volumes=names, why=trouble)
        return marks

    return checked


WHAT = "snapshot create"
QUIESCED_WAIT_S = 5.0
"""How long a volume is waited for while its application waits."""
_log = logging.getLogger("polyvol")


class SnapshotTaker:
    """Takes snapshots of volumes and of groups."""

    def __init__(self, context: Context, snapshots: Snapshots, hooks: HookRunner) -> None:
        self._context = context
        self._snapshots = snapshots
        self._hooks = hooks

    def take(self, request: SnapshotCreate) -> list[SnapshotView]:
        """Take one cut of the volumes that are named."""
        if not request.volumes:
            raise BadRequest(why="no volume is named")
        refuse_repeats("volume", request.volumes)
        with self._context.reading():
            volumes = [self._context.find_served(name) for name in request.volumes]
        return self._take(volumes, request)

    def take_of_group(
        self, group: Group, request: SnapshotWanted, schedule: Schedule | None = None
    ) -> list[SnapshotView]:
        """Take one cut of all volumes that a group has now, for a schedule if one is given."""
        if not group.volumes:
            raise GroupEmpty(name=group.name)
        by_id = self._volumes()
        if any(volume not in by_id for volume in group.volumes):
            raise GroupChanged(name=group.name, why="a volume was deleted")
        return self._take([by_id[volume] for volume in group.volumes], request, group, schedule)

    def take_of_schedule(self, schedule: Schedule) -> list[SnapshotView]:
        """Take the cut of the volume or group that a schedule is for."""
        request = SnapshotCreate(volumes=(), scheduled=True)
        if schedule.group is not None:
            group = self._context.catalog.groups.get(schedule.group)
            if group is not None:
                return self.take_of_group(group, request, schedule)
        elif schedule.volume is not None:
            volume = self._volumes().get(schedule.volume)
            if volume is not None:
                return self._take([volume], request, schedule=schedule)
        raise UnknownSchedule(name=schedule.name)  # it went with its volume or group

    def _take(
        self,
        volumes: Sequence[Volume],
        request: SnapshotWanted,
        group: Group | None = None,
        schedule: Schedule | None = None,
    ) -> list[SnapshotView]:
        context = self._context
        self._hooks.refuse_from_hook(volumes)
        rewritten = {volume.id: context.rewritten[volume.id] for volume in volumes}
        names = {volume.id: volume.name for volume in volumes}
        with context.locks.volumes(names, WHAT):
            pass
        self._snapshots.check(volumes, request, group)  # TK1
        with self._hooks.around(volumes, request.name, group, schedule) as around:
            thaw = around.thaw
            wait_s = None if thaw is None else QUIESCED_WAIT_S
            if request.require_hooks:
                thaw = required(thaw, volumes)
            with (
                nullcontext() if group is None else context.holding_group(group, WHAT),
                context.locks.volumes(names, WHAT, wait_s=wait_s) as operation,
            ):
                now = self._as_now(volumes, rewritten, group, schedule)
                if schedule is not None:  # its name may have changed, and is recorded
                    schedule = self._schedule_now(schedule)
                try:
                    views = self._snapshots.create(
                        now,
                        request,
                        group=group,
                        schedule=schedule,
                        thaw=thaw,
                        lent=context.locks.lent(operation),
                    )
                except CutFailed as failed:
                    if not isinstance(failed.cause, CatalogConflict) or failed.undo_failed_on:
                        raise
                    self._as_now(volumes, rewritten, group, schedule)  # reports what has changed
                    raise failed.cause from failed
        for view in views:
            fields = {"VOLUME": view.volume, "SNAPSHOT": view.name}
            if group is not None:
                fields["GROUP"] = group.name
            if schedule is not None:
                fields["SCHEDULE"] = schedule.name
            _log.info("snapshot %s was taken", view.export, extra=fields)
        return [
            replace(view, thaw_trouble=around.thaw_troubles.get(volume.id))
            for volume, view in zip(now, views, strict=True)
        ]

    def _as_now(
        self,
        volumes: Sequence[Volume],
        rewritten: Mapping[VolumeId, int],
        group: Group | None,
        schedule: Schedule | None,
    ) -> list[Volume]:
        """The volumes as they are now; an error if they, the group or the schedule are not what they were
        before the hooks (TK2). That a volume has grown is fine."""
        with self._context.reading():
            if schedule is not None:
                self._schedule_now(schedule)
            if group is not None:
                self._refuse_changed_group(group)
            by_id = self._volumes()
            taken = {volume.name for volume in by_id.values()}
        for volume in volumes:
            if volume.id not in by_id:
                if volume.name not in taken:
                    raise UnknownVolume(name=volume.name)
                raise VolumeChanged(name=volume.name, why="another volume has taken its name")
            if self._context.rewritten[volume.id] != rewritten[volume.id]:
                raise VolumeChanged(name=volume.name, why="it was rolled back or restored")
        return [by_id[volume.id] for volume in volumes]

    def _schedule_now(self, schedule: Schedule) -> Schedule:
        """The schedule as it is now; UnknownSchedule if it is gone."""
        now = self._context.catalog.schedules.get(schedule.id)
        if now is None:
            raise UnknownSchedule(name=schedule.name)
        return now

    def _refuse_changed_group(self, group: Group) -> None:
        now = self._context.catalog.groups.get(group.id)
        if now is None:
            raise UnknownGroup(name=group.name)
        if set(now.volumes) != set(group.volumes):
            left = set(group.volumes) - set(now.volumes)
            raise GroupChanged(name=group.name, why="a volume left it" if left else "a volume joined it")

    def _volumes(self) -> dict[VolumeId, Volume]:
        """All volumes that there are for users, by id."""
        volumes = self._context.catalog.volumes.all()
        return {volume.id: volume for volume in volumes if not volume.kept and volume.state != "deleting"}
