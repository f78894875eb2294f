"""The verbs of volumes: create, clone, delete, list, show, and what happens with them at start.

How it works      create: plan (pure); record as 'creating'; make the devices that the plan asks for; hand
                  the volume to the engine; record as 'ready'; export it. delete: end its exports; record as
                  'deleting'; take it from the engine; clear its extents, remove its files; forget it. A
                  volume that clones were made from is kept for them instead (kept.py). A clone comes after
                  its source in all that goes by id: so sources are served first.
Durability        A kill in the middle of either is settled at the next start: what is 'creating' or
                  'deleting' is cleared, removed and forgotten. Once create returned, the volume is there
                  after any crash.
Owner and locks   What changes a volume is done by who holds its lock (daemon/locks.py): the caller, or
                  create, clone and let_go themselves. A name and the extents are taken under
                  `changes`, by recording the volume as 'creating'.
Errors            mapping/errors.py, VolumeInUse, VolumeNotServed, DeleteUnfinished, EngineFailed. At start
                  nothing raises: `volume_trouble` has the findings, and the other volumes are served.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from polyvol.daemon import device_files, stopped
from polyvol.daemon.change_logs import ChangeLogs, inventory
from polyvol.daemon.context import Context
from polyvol.daemon.devices import Devices
from polyvol.daemon.errors import (
    DeleteUnfinished,
    EngineFailed,
    JournalsUnusable,
    VolumeInUse,
    counted_clients,
)
from polyvol.daemon.health import (
    bad_block_views,
    bad_blocks_clause,
    device_troubles,
    partition_views,
    unusable_devices,
    volume_trouble,
)
from polyvol.daemon.hooks import checked_hooks, hook_view
from polyvol.daemon.kept import Kept
from polyvol.daemon.plan_views import plan_view
from polyvol.daemon.reading import reads
from polyvol.daemon.requests import CloneCreate, VolumeCreate, VolumeSet
from polyvol.daemon.restore_views import restore_reason, restore_view
from polyvol.daemon.scrub import Scrubs
from polyvol.daemon.snapshot_use import volume_use
from polyvol.daemon.views import (
    BadBlockView,
    DroppedView,
    ExportView,
    PlanView,
    SourceView,
    VolumeDeleted,
    VolumeView,
    iso,
)
from polyvol.mapping.clone import CloneRequest, plan_clone
from polyvol.mapping.device import Device, zero_extents
from polyvol.mapping.errors import DeviceNotReady, PolyvolError, UnknownSnapshot
from polyvol.mapping.extent import Extent
from polyvol.mapping.opening import sync_directory
from polyvol.mapping.records import CloneSource, RestoreRecord, SnapshotRecord, Volume
from polyvol.mapping.volume import VolumePlan, VolumeRequest, plan_volume, volume_spec
from polyvol.snapshot.coordinator import export_snapshot
from polyvol.snapshot.snapshot import export_name

_log = logging.getLogger("polyvol")


class Volumes:
    """The verbs of volumes."""

    def __init__(self, context: Context, devices: Devices, scrubs: Scrubs) -> None:
        self._context = context
        self._scrubs = scrubs
        self._devices = devices
        self.change_logs = ChangeLogs(context)
        self._kept = Kept(context, self._remove)

    def start(self) -> None:
        """Settle what is half done, then serve every volume, as far as its devices are right."""
        context = self._context
        stopped.begin(context)
        for volume in context.catalog.volumes():
            if volume.state == "ready":
                self.change_logs.settle(volume)
                self.serve(volume)
            else:
                self.settle(volume)
        self._kept.let_go()

    def let_go(self) -> None:
        """Let go of what is kept for clones that are gone. The caller holds no lock."""
        self._kept.let_go()

    def serve(self, volume: Volume) -> None:
        """Hand a volume to the engine and export it, or note why it cannot be."""
        context = self._context
        context.volume_trouble.pop(volume.id, None)
        try:
            self._hand_over(volume)
            self._export(volume)
        except PolyvolError as error:
            reason = str(error) if isinstance(error, JournalsUnusable) else error.message
            context.volume_trouble[volume.id] = reason
            fields = {"VOLUME": volume.name}
            _log.warning("volume %s is not served: %s", volume.name, reason, extra=fields)

    @reads
    def plan(self, request: VolumeCreate) -> PlanView:
        """The volume as it would be; changes nothing."""
        return plan_view(self._context, self._plan(request))

    def create(self, request: VolumeCreate) -> VolumeView:
        """Make a volume and export it."""
        self._make(lambda: self._plan(request))
        return self.show(request.name, partitions=False)

    def clone(self, volume_name: str, name: str, request: CloneCreate) -> VolumeView:
        """Make a volume from a snapshot of another one, and export it."""
        context = self._context
        wanted = CloneRequest(request.name, request.log_devices, request.processors, request.when_full)
        with context.holding(volume_name, "volume clone"):
            source = context.find_served(volume_name, restoring=True)
            found = (each for each in context.catalog.snapshots(source.id) if each.name == name)
            snapshot = next(found, None)
            if snapshot is None:
                raise UnknownSnapshot(volume=source.name, name=name)
            self._make(lambda: plan_clone(wanted, source, snapshot, inventory(context)))
        text = f"volume {request.name} was cloned from {export_name(source.name, name)}"
        context.events.add("info", text, volume=request.name)
        return self.show(request.name, partitions=False)

    def make_for_restore(self, request: VolumeCreate, restore: RestoreRecord) -> Volume:
        """Make a volume that is not exported until the restore is complete."""
        self._make(lambda: self._plan(request), restore)
        return self._context.find_volume(request.name)

    def _make(self, plan: Callable[[], VolumePlan], restore: RestoreRecord | None = None) -> None:
        context = self._context
        with context.changes:  # the plan holds until it is recorded
            planned = plan()
            context.grow_processors(max(planned.processors) + 1)
            volume = context.catalog.create_volume(planned)
        with context.locks.volumes({volume.id: volume.name}, "volume create"):
            self._make_planned(volume, restore)

    def _make_planned(self, volume: Volume, restore: RestoreRecord | None) -> None:
        context = self._context
        try:
            for device in self._made_for(volume):
                device_files.make(context, device, context.path(device))
            self._hand_over(volume)
            if restore is not None:
                context.catalog.restores.begin(replace(restore, volume=volume.id))
                volume = replace(volume, restoring=True)
            context.catalog.set_volume_state(volume.id, "ready")
            self._export(volume)
        except BaseException:
            self._undo_create(volume)
            raise

    def delete(self, name: str, refuse: Callable[[Volume], None]) -> VolumeDeleted:
        """Delete a volume that no client is connected to, with its snapshots; clones of them stay as they
        are. `refuse` raises if something else needs it. The caller holds its lock, and calls `let_go` when it
        has released it."""
        context = self._context
        volume = context.find_volume(name)
        if volume.state != "ready":
            reason = context.volume_trouble.get(volume.id, "the engine holds it still")
            raise DeleteUnfinished(name=name, reason=reason)
        refuse(volume)
        snapshots = context.catalog.snapshots(volume.id)
        served = volume.id not in context.volume_trouble
        if served:
            self._unexport(volume, snapshots)
        try:
            with context.changes:
                refuse(volume)
                gone = self._kept.record(volume)
                if gone is None:
                    context.catalog.set_volume_state(volume.id, "deleting")
            if gone is not None:
                self._kept.keep(volume, gone)
                return VolumeDeleted(name=name, snapshots=len(snapshots))
        except BaseException:
            if served and context.catalog.volume(name) == volume:
                self._export(volume)  # it exists on
            raise
        self._remove(volume)
        return VolumeDeleted(name=name, snapshots=len(snapshots))

    def _remove(self, volume: Volume) -> None:
        """Delete a volume that has no exports, for good."""
        context = self._context
        context.catalog.set_volume_state(volume.id, "deleting")
        if volume.id not in context.volume_trouble:
            with context.engine_errors(f"taking volume {volume.name} out of service"):
                try:
                    context.engine.remove_volume(volume.id)
                except context.engine_error:
                    if context.engine_has(volume):
                        raise  # else it could not make all of it durable, which nobody needs any more
        try:
            self._give_back(volume)
        except (PolyvolError, OSError) as error:
            reason = error.message if isinstance(error, PolyvolError) else str(error)
            context.volume_trouble[volume.id] = reason
            raise DeleteUnfinished(name=volume.name, reason=reason) from error

    def change(self, name: str, request: VolumeSet) -> VolumeView:
        """Change what can be changed of a volume. The caller holds its lock."""
        context = self._context
        volume = context.find_volume(name)
        if request.hooks is not None:
            checked_hooks(request.hooks)  # what is refused is refused before anything changes
        if request.when_full is not None:
            context.catalog.set_when_full(volume.id, request.when_full)
            if context.is_served(volume):
                context.ask_when_full(replace(volume, when_full=request.when_full))
        if request.hooks is not None:
            context.catalog.schedules.set_volume_hooks(volume.id, checked_hooks(request.hooks))
        return self.show(name, partitions=False)

    @reads
    def list_all(self, *, kept: bool = False) -> list[VolumeView]:
        """All volumes; with those that are deleted and kept for their clones, if `kept`."""
        volumes = self._context.catalog.volumes()
        return [self._view(volume) for volume in volumes if kept or not volume.kept]

    @reads
    def show(self, name: str, *, partitions: bool) -> VolumeView:
        """One volume, with its partitions if asked for."""
        volume = self._context.find_volume(name)
        view = self._view(volume, partitions=partitions)
        return replace(view, use=volume_use(self._context, volume))

    def _plan(self, request: VolumeCreate) -> VolumePlan:
        wanted = VolumeRequest(
            name=request.name,
            size=request.size,
            partition_size=request.partition_size,
            devices=request.devices,
            log_devices=request.log_devices,
            processors=request.processors,
            base=request.base,
            when_full=request.when_full,
        )
        return plan_volume(wanted, inventory(self._context))

    def _hand_over(self, volume: Volume) -> None:
        context = self._context
        stopped.check(context, volume)
        partitions = context.catalog.partitions(volume.id)
        context.grow_processors(max(partition.processor for partition in partitions) + 1)
        spec = volume_spec(
            volume,
            partitions,
            context.catalog.logs(volume.id),
            context.catalog.snapshots_and_kept(volume.id),
            context.catalog.rollbacks.of(volume.id),
            str(context.volume_directory(volume)),
            str(context.manifest_directory(volume)),
        )
        try:
            with context.engine_errors(f"taking volume {volume.name} into service"):
                context.engine.add_volume(spec)
        except EngineFailed as error:
            if error.kind == "corrupt":
                raise JournalsUnusable(name=volume.name, why=error.facts["why"]) from error
            raise
        if volume.manifests != len(partitions):
            context.catalog.set_manifests(volume.id, len(partitions))
        context.ask_when_full(volume)

    def export_live(self, volume: Volume) -> None:
        """Export a volume itself, unless a backup is being restored to it."""
        if volume.restoring:
            return
        with self._context.engine_errors(f"exporting volume {volume.name}"):
            self._context.engine.export(volume.name, _description(volume), volume.id, None)

    def _export(self, volume: Volume) -> None:
        context = self._context
        if volume.kept:
            return
        self.export_live(volume)
        with context.engine_errors(f"exporting volume {volume.name}"):
            for snapshot in context.catalog.snapshots(volume.id):
                export_snapshot(context.engine, volume, snapshot)

    def _unexport(self, volume: Volume, snapshots: list[SnapshotRecord]) -> None:
        """End all exports of a volume, or none and VolumeInUse."""
        context = self._context
        live = context.restoring.get(volume.id, volume.name)
        names = [live, *(export_name(volume.name, snapshot.name) for snapshot in snapshots)]
        clients = context.connections(names)
        if clients:
            raise VolumeInUse(name=volume.name, **counted_clients(clients))
        try:
            for name in names:
                context.engine.unexport(name)
        except context.engine_error as error:
            # A client came in between: everything is exported again, so that nothing has changed.
            remaining = {export["name"] for export in context.engine.exports()}
            if volume.name not in remaining:
                self.export_live(volume)
            for snapshot in snapshots:
                if export_name(volume.name, snapshot.name) not in remaining:
                    export_snapshot(context.engine, volume, snapshot)
            clients = max(1, context.connections(names))
            raise VolumeInUse(name=volume.name, **counted_clients(clients)) from error
        context.restoring.pop(volume.id, None)

    def _undo_create(self, volume: Volume) -> None:
        """Best effort: what cannot be undone now is settled at the next start."""
        context = self._context
        context.catalog.set_volume_state(volume.id, "deleting")
        with contextlib.suppress(context.engine_error):
            context.engine.unexport(volume.name)
        with contextlib.suppress(context.engine_error):
            context.engine.remove_volume(volume.id)
        self.settle(volume)

    def settle(self, volume: Volume) -> None:
        """Finish what is half made or half deleted, or note why it cannot be. The caller holds its lock."""
        try:
            self._give_back(volume)
        except (PolyvolError, OSError) as error:
            reason = error.message if isinstance(error, PolyvolError) else str(error)
            self._context.volume_trouble[volume.id] = reason

    def _give_back(self, volume: Volume) -> None:
        """Clear a volume's extents, remove its files, forget it. Repeatable."""
        context = self._context
        made = self._made_for(volume)
        made_ids = {device.id for device in made}
        by_id = {device.id: device for device in context.catalog.devices()}
        unusable = unusable_devices(context)
        extents: dict[int, list[Extent]] = {}
        for holder in (context.catalog.partitions(volume.id), context.catalog.logs(volume.id)):
            for extent in (extent for item in holder for extent in item.extents):
                extents.setdefault(extent.device, []).append(extent)
        for identity, runs in extents.items():
            device = by_id[identity]
            if identity in made_ids or device.adopted:
                continue
            if identity in unusable:
                raise DeviceNotReady(name=device.name, reason=unusable[identity])
            with context.locks.device(device.id, device.name, f"clearing the space of volume {volume.name}"):
                zero_extents(device, device_files.file_of(context, device), runs)
        for device in made:
            with context.locks.device(device.id, device.name, "being removed"):
                device_files.unmake(context, device)
                context.device_trouble.pop(device.id, None)
        for directory in (context.volume_directory(volume), context.manifest_directory(volume)):
            if directory.exists():
                shutil.rmtree(directory)
            sync_directory(directory.parent)  # nobody would remove it once it is forgotten
        with context.changes:
            context.catalog.forget_volume(volume.id)
        context.volume_trouble.pop(volume.id, None)

    def _made_for(self, volume: Volume) -> list[Device]:
        return [device for device in self._context.catalog.devices() if device.made_for == volume.id]

    def _view(self, volume: Volume, *, partitions: bool = False) -> VolumeView:
        context = self._context
        names = context.device_names()
        snapshots = context.catalog.snapshots(volume.id)
        wanted = {volume.name, *(export_name(volume.name, snapshot.name) for snapshot in snapshots)}
        exports = [
            ExportView(name=export["name"], read_only=export["read_only"], connections=export["connections"])
            for export in context.exports()
            if export["name"] in wanted
        ]
        reason = context.volume_trouble.get(volume.id)
        serving = volume.state == "ready" and reason is None
        devices = context.catalog.volume_devices(volume.id)
        bad = bad_block_views(context, volume, names) if serving else []
        degraded = self._degraded(volume, devices, bad) if serving else None
        restore = restore_view(context, volume, snapshots)
        reasons = (reason, None if restore is None else restore_reason(restore), degraded)
        adopted = {device.id for device in context.catalog.devices() if device.adopted}
        return VolumeView(
            name=volume.name,
            uuid=str(volume.uuid),
            state=_state(volume, serving=serving, degraded=degraded is not None),
            reason="; ".join(each for each in reasons if each) or None,
            size=volume.size,
            partition_size=volume.partition_size,
            partition_count=-(-volume.size // volume.partition_size),
            processors=context.catalog.volume_processors(volume.id),
            devices=[names[device] for device in devices],
            base=next((names[device] for device in devices if device in adopted), None),
            source=self._source_view(volume),
            when_full=volume.when_full,
            logs=self.change_logs.views(volume, names, serving=serving),
            space=self.change_logs.space(volume) if serving else None,
            dropped=[
                DroppedView(
                    snapshot=dropped.name,
                    created=iso(dropped.instant_ns),
                    dropped=iso(dropped.dropped_ns),
                    freed=dropped.freed,
                )
                for dropped in context.catalog.removal.dropped_snapshots(volume.id)
            ],
            exports=exports,
            connections=sum(export.connections for export in exports)
            + (0 if restore is None else restore.connections),
            snapshots=[snapshot.name for snapshot in snapshots],
            created=iso(volume.created_ns),
            bad_blocks=bad,
            last_scrub=self._scrubs.last(volume),
            hooks=hook_view(context.catalog.schedules.volume_hooks(volume.id)),
            restore=restore,
            partitions=partition_views(context, volume, names) if partitions else None,
        )

    def _source_view(self, volume: Volume) -> SourceView | None:
        """What a volume was made from, by the names that its source had."""
        if volume.source is None:
            return None
        source = self._source(volume.source)
        records = self._context.catalog.snapshots_and_kept(source.id)
        record = next(each for each in records if each.epoch == volume.source.epoch)
        return SourceView(
            volume=source.name.partition("#")[0],
            snapshot=record.name.partition("#")[0],
            deleted=record.kept,
        )

    def _source(self, source: CloneSource) -> Volume:
        return next(each for each in self._context.catalog.volumes() if each.id == source.volume)

    def _degraded(self, volume: Volume, devices: list[int], bad: list[BadBlockView]) -> str | None:
        """Why a volume that is served is degraded, or None. A clone is, where its source is."""
        context = self._context
        troubles = device_troubles(context)
        reasons = []
        logs = {extent.device for log in context.catalog.logs(volume.id) for extent in log.extents}
        used = [*devices, *sorted(logs.difference(devices))]
        if not troubles.keys().isdisjoint(used):
            partitions = context.catalog.partitions(volume.id)
            reasons.append(volume_trouble(used, partitions, troubles))
        if bad:
            reasons.append(bad_blocks_clause(bad))
        if context.state_trouble is not None:
            reasons.append(context.state_trouble)
        if volume.source is not None:
            source = self._source(volume.source)
            bad = bad_block_views(context, source, context.device_names())
            reason = self._degraded(source, context.catalog.volume_devices(source.id), bad)
            reasons.append(None if reason is None else f"its source {source.name}: {reason}")
        return "; ".join(reason for reason in reasons if reason) or None


def _state(
    volume: Volume, *, serving: bool, degraded: bool
) -> Literal["serving", "degraded", "not-served", "restoring", "creating", "deleting", "kept"]:
    if volume.state != "ready":
        return volume.state
    if volume.kept:
        return "kept"
    if not serving:
        return "not-served"
    if volume.restoring:
        return "restoring"
    return "degraded" if degraded else "serving"


def _description(volume: Volume) -> str:
    """What its export is described as; attached hosts tell by the UUID whether it is the one they knew."""
    return f"volume {volume.name} ({volume.uuid})"
