"""Restores: a volume that a backup is written to is exclusive to that restore until it is complete.

How it works      begin: for a full backup a volume is made; for an incremental one, the export of the volume
                  with its base ends. The catalog records the restore; then the volume is exported under a
                  secret name, which only the answer has, hidden from lists. The restoring client writes to it
                  over NBD.
                  complete: that export ends, and the coordinator takes the snapshot; the transaction that
                  commits it deletes the restore's record; then the volume is exported by its own name.
                  abandon: the volume is rolled back to its base, in the transaction that deletes the record,
                  or is deleted if it was made for the restore.
Invariants        RS1 a volume with an incomplete restore is exported to that restore alone, also after a
                  restart; RS2 an incremental restore begins only on a volume that equals its base; RS3 a
                  restore is resumed only with the stream that it began with; RS4 a restore has one client at
                  a time: the export's name changes each time that it is begun or resumed.
Owner and locks   The verbs take the volume's lock. `Context.restoring` has the exports, and is changed under
                  it.
Durability        The record is durable before the first write is possible. After a kill the next start finds
                  it and exports only the volume's snapshots.
Errors            Restoring, RestoreRunning, RestoreEnded, NoRestore, CannotResume, NotANewVolume,
                  BaseMissing, ChangedSinceBase, AlreadyRestored, TargetSize, VolumeInUse, before anything
                  changes.
"""

import logging
import secrets
import time
from dataclasses import dataclass
from uuid import UUID

from polyvol.daemon.backup_errors import (
    AlreadyRestored,
    BaseMissing,
    CannotResume,
    ChangedSinceBase,
    NotANewVolume,
    TargetSize,
)
from polyvol.daemon.context import Context
from polyvol.daemon.errors import (
    BadRequest,
    NoRestore,
    RestoreEnded,
    RestoreRunning,
    VolumeInUse,
    counted_clients,
)
from polyvol.daemon.groups.rollback import Rollbacks
from polyvol.daemon.groups.verbs import Groups
from polyvol.daemon.left_over import coordinator
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.restores import RestoreAbandoned, RestoreBegin, RestoreCompletion, RestoreView
from polyvol.daemon.types.snapshots import SnapshotView
from polyvol.daemon.types.volumes import VolumeCreate
from polyvol.daemon.volumes.exporting import end_export, ended
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.names import check_free, check_name
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import export_description, export_name

HIDDEN = "@restore:"
"""Between a volume's name and the secret, in the name of the export that a restore is written to."""
_WHAT = "restore"
_END_TIMEOUT_S = 4.0
_END_POLL_S = 0.01
_log = logging.getLogger("polyvol")


@dataclass(frozen=True, slots=True)
class _Stream:
    """The UUIDs of a stream."""

    number: UUID
    snapshot: UUID
    base: UUID | None


class Restores:
    """The verbs of restores."""

    def __init__(
        self, context: Context, volumes: Volumes, snapshots: Snapshots, groups: Groups, rollbacks: Rollbacks
    ) -> None:
        self._context = context
        self._volumes = volumes
        self._snapshots = snapshots
        self._groups = groups
        self._rollbacks = rollbacks
        self._coordinator = coordinator(context)

    def begin(self, request: RestoreBegin) -> RestoreView:
        """Begin a restore, or resume it."""
        check_name("volume", request.volume)
        check_name("snapshot", request.snapshot)
        stream = _stream(request)
        if stream.base is None and self._context.catalog.volumes.find(request.volume) is None:
            return self._begin_full(request, stream)
        if self._context.catalog.volumes.find(request.volume) is None:
            raise _base_missing(request, stream)
        with self._context.holding(request.volume, _WHAT) as there:
            if there.restoring:
                return self._resume(request, stream, there)
            if stream.base is None:
                if request.resume:
                    self._refuse_restored(request, stream, there)
                    raise _not_begun(request)
                raise NotANewVolume(name=request.source, volume=there.name)
            return self._begin_incremental(request, stream)

    def complete(self, volume_name: str, request: RestoreCompletion) -> SnapshotView:
        """Take the snapshot of a volume whose restore is complete, and export the volume."""
        context = self._context
        self._wait_for_end(request.export)
        with context.holding_served(volume_name, _WHAT, restoring=True) as volume:
            restore = context.catalog.restores.of(volume.id)
            if restore is None:
                raise NoRestore(name=volume_name)
            if context.restoring.get(volume.id) != request.export:
                raise RestoreEnded(name=volume_name)
            with context.engine_errors(f"ending the restore to volume {volume_name}"):
                context.engine.disconnect(request.export)  # its writes are flushed
            self._end_session(volume)
            self._coordinator.take([volume], restore.snapshot, restored=restore)
            self._volumes.export_again(context.find_volume(volume_name))
            view = self._snapshots.show(volume_name, restore.snapshot, partitions=False)
        export = export_name(volume_name, restore.snapshot)
        text = f"snapshot {export} was restored from {restore.source}"
        context.events.add("info", text, volume=volume_name, SNAPSHOT=restore.snapshot)
        return view

    def abandon(self, volume_name: str) -> RestoreAbandoned:
        """End an incomplete restore that no client is writing."""
        context = self._context
        with context.holding(volume_name, _WHAT) as volume:
            restore = context.catalog.restores.of(volume.id)
            if restore is None:
                raise NoRestore(name=volume_name)
            base = None if restore.base is None else self._base_of(volume, restore)
            if base is None:
                self._groups.refuse_delete(volume)
                self._end_session(volume)
                self._volumes.delete_held(volume, self._groups.refuse_delete)
            else:
                context.refuse_not_served(volume, restoring=True)
                self._end_session(volume)
                self._rollbacks.abandon_restore(volume, base, restore)
        self._volumes.release_unneeded()
        text = f"the restore to volume {volume_name} from {restore.source} was abandoned"
        context.events.add("info", text, volume=volume_name)
        return RestoreAbandoned(volume=volume_name, base=None if base is None else base.name)

    # How a restore begins

    def _begin_full(self, request: RestoreBegin, stream: _Stream) -> RestoreView:
        wanted = VolumeCreate(
            name=request.volume,
            size=request.size,
            partition_size=request.partition_size,
            devices=request.devices,
            log_devices=request.log_devices,
            processors=request.processors,
            place=request.place,
        )
        if request.dry_run:
            self._volumes.plan(wanted)
            return RestoreView(volume=request.volume, export=None, resumed=False, base=None)
        volume = self._volumes.make_for_restore(
            wanted, _restore_record(request, stream, self._context.clock())
        )
        _log.info(
            "volume %s was made, to restore %s to it",
            volume.name,
            request.source,
            extra={"VOLUME": volume.name},
        )
        with self._context.holding(volume.name, _WHAT) as now:
            if now.id != volume.id or not now.restoring:
                raise RestoreEnded(name=volume.name)
            return self._begin_session(volume, None, resumed=False)

    def _begin_incremental(self, request: RestoreBegin, stream: _Stream) -> RestoreView:
        context = self._context
        volume = context.find_served(request.volume)
        base = self._find_base(request, stream, volume)
        if request.resume:
            raise _not_begun(request)
        self._refuse_changed(request, volume, base)
        self._refuse_open(volume, context.connections([volume.name]))
        if request.dry_run:
            return RestoreView(volume=volume.name, export=None, resumed=False, base=base.name)
        with ended([volume], self._end_export, self._volumes.export_again):
            self._refuse_changed(request, volume, base)  # RS2: no client can write any more
            record = _restore_record(request, stream, context.clock(), volume=volume.id, base=base.epoch)
            context.catalog.restores.begin(record)
        _log.info(
            "%s is being restored to volume %s", request.source, volume.name, extra={"VOLUME": volume.name}
        )
        return self._begin_session(volume, base.name, resumed=False)

    def _resume(self, request: RestoreBegin, stream: _Stream, volume: Volume) -> RestoreView:
        context = self._context
        restore = context.catalog.restores.of(volume.id)
        if restore is None or not request.resume:
            raise context.restoring_error(volume)
        if restore.stream != stream.number:  # RS3
            raise CannotResume(
                volume=volume.name,
                name=request.source,
                why=f"it is being restored from {restore.source}, which was another backup then",
                todo=f"give that one, or end its restore with `polyvol volume abandon-restore {volume.name}`",
            )
        context.find_served(volume.name, restoring=True)
        base = None if restore.base is None else self._base_of(volume, restore).name
        if request.dry_run:
            self._refuse_running(volume)
            return RestoreView(volume=volume.name, export=None, resumed=True, base=base)
        return self._begin_session(volume, base, resumed=True)

    def _begin_session(self, volume: Volume, base: str | None, *, resumed: bool) -> RestoreView:
        """Export a volume to the client of its restore alone (RS1, RS4)."""
        context = self._context
        self._end_session(volume)
        export = f"{volume.name}{HIDDEN}{secrets.token_hex(16)}"
        text = f"{export_description(volume)}, being restored"
        with context.engine_errors(f"exporting volume {volume.name} to its restore"):
            context.engine.export_hidden(export, text, volume.id)
        context.restoring[volume.id] = export
        context.rewritten[volume.id] += 1
        return RestoreView(volume=volume.name, export=export, resumed=resumed, base=base)

    def _wait_for_end(self, export: str) -> None:
        """Wait, for a bounded time, until a closed connection has ended: nbdkit ends one after its client has
        continued."""
        until = time.monotonic() + _END_TIMEOUT_S
        while self._context.connections([export]) and time.monotonic() < until:
            time.sleep(_END_POLL_S)

    def _end_export(self, volume: Volume) -> None:
        self._refuse_open(volume, end_export(self._context, volume.name))

    @staticmethod
    def _refuse_open(volume: Volume, clients: int) -> None:
        if clients:
            raise VolumeInUse(name=volume.name, **counted_clients(clients))

    def _end_session(self, volume: Volume) -> None:
        """End the export of a restore; RestoreRunning if a client is writing it."""
        context = self._context
        export = context.restoring.get(volume.id)
        if export is None:
            return
        clients = end_export(context, export)
        if clients:
            raise RestoreRunning(name=volume.name, clients=counted_clients(clients)["clients"])
        del context.restoring[volume.id]

    def _refuse_running(self, volume: Volume) -> None:
        export = self._context.restoring.get(volume.id)
        clients = 0 if export is None else self._context.connections([export])
        if clients:
            raise RestoreRunning(name=volume.name, clients=counted_clients(clients)["clients"])

    # What an incremental restore follows

    def _find_base(self, request: RestoreBegin, stream: _Stream, volume: Volume) -> SnapshotRecord:
        """The snapshot that an incremental stream follows, on a volume that can take the stream."""
        self._refuse_restored(request, stream, volume)
        if volume.size != request.size:
            raise TargetSize(target=volume.name, found=volume.size, source=request.source, size=request.size)
        taken = self._context.catalog.snapshots.names(volume.id)
        check_free("snapshot", request.snapshot, taken, export_name(volume.name, request.snapshot))
        base = None
        for record in self._context.catalog.snapshots.of(volume.id):
            if _contents(record) == stream.base and not self._context.was_deleted(record):
                base = record
        if base is None:
            raise _base_missing(request, stream)
        return base

    def _refuse_restored(self, request: RestoreBegin, stream: _Stream, volume: Volume) -> None:
        for record in self._context.catalog.snapshots.of(volume.id):
            if _contents(record) == stream.snapshot:
                raise AlreadyRestored(volume=volume.name, name=request.source, snapshot=record.name)

    def _refuse_changed(self, request: RestoreBegin, volume: Volume, base: SnapshotRecord) -> None:
        with self._context.engine_errors(f"comparing volume {volume.name} with its snapshot {base.name}"):
            changed, _ = self._context.engine.changes(volume.id, base.epoch, None, 0, 1)
        # Data after the base's end is new since the volume has grown, and the stream covers it.
        if changed and changed[0][0] < base.size:
            raise ChangedSinceBase(volume=volume.name, base=base.name, name=request.source)

    def _base_of(self, volume: Volume, restore: RestoreRecord) -> SnapshotRecord:
        assert restore.base is not None
        base = self._context.catalog.snapshots.at(volume.id, restore.base)
        assert base is not None, "RT2"
        self._context.refuse_deleted(volume, base)
        return base


def _contents(record: SnapshotRecord) -> UUID:
    """The UUID of a snapshot's contents: its own, or that of the one that it is a copy of."""
    return record.copy_of or record.uuid


def _not_begun(request: RestoreBegin) -> CannotResume:
    return CannotResume(
        volume=request.volume,
        name=request.source,
        why="none was begun",
        todo="leave --resume out; a full backup is restored to a new volume",
    )


def _base_missing(request: RestoreBegin, stream: _Stream) -> BaseMissing:
    return BaseMissing(name=request.source, base=request.base, uuid=stream.base, volume=request.volume)


def _stream(request: RestoreBegin) -> _Stream:
    try:
        base = None if request.base_uuid is None else UUID(request.base_uuid)
        return _Stream(UUID(request.stream), UUID(request.snapshot_uuid), base)
    except ValueError as error:
        raise BadRequest(why="stream, snapshot_uuid and base_uuid can be UUIDs") from error


def _restore_record(
    request: RestoreBegin,
    stream: _Stream,
    begun_ns: int,
    *,
    volume: VolumeId | None = None,
    base: Epoch | None = None,
) -> RestoreRecord:
    return RestoreRecord(
        volume=VolumeId(0) if volume is None else volume,  # 0: it is made for the restore
        stream=stream.number,
        source=request.source,
        snapshot=request.snapshot,
        snapshot_uuid=stream.snapshot,
        base=base,
        begun_ns=begun_ns,
    )
