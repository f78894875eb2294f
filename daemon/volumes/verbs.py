"""The verbs of volumes: create, clone, delete, list, show, and their loading at a start.

How it works      create: plan (pure); record as 'creating'; make the devices that the plan asks for; hand
                  the volume to the engine; record as 'ready'; export it. delete: end its exports; record as
                  'deleting'; the rest is in removal.py. A volume that clones were made from is pinned for
                  them instead (clone_pins.py). A clone has a higher id than its source, so loops in the order
                  of ids serve sources first.
Durability        After a kill during either, the next start clears, removes and forgets volumes that are
                  'creating' or 'deleting'. Once create has returned, the volume exists after any crash.
Owner and locks   Each verb takes the volume's lock (daemon/locks.py). Recording the volume as 'creating',
                  under `catalog_lock`, reserves its name and extents.
Errors            mapping/errors.py, VolumeInUse, VolumeNotServed, DeleteUnfinished, EngineFailed. None at a
                  start: `volume_trouble` has the findings, and the other volumes are served.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.devices import files as device_files
from polyvol.daemon.devices.health import (
    bad_block_views,
    bad_blocks_clause,
    device_troubles,
    partition_views,
    volume_trouble,
)
from polyvol.daemon.devices.verbs import Devices
from polyvol.daemon.errors import (
    EngineFailed,
    JournalsUnusable,
    VolumeInUse,
    counted_clients,
)
from polyvol.daemon.hooks.run import hook_view
from polyvol.daemon.isolation import isolate
from polyvol.daemon.relocation_progress import RelocationProgress
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.log_areas import LogAdd, LogLimitView
from polyvol.daemon.types.scrubs import BadBlockView
from polyvol.daemon.types.volumes import (
    CloneCreate,
    CloneSourceView,
    DroppedSnapshotView,
    ExportView,
    PlanView,
    RelocationView,
    VolumeCreate,
    VolumeDeleted,
    VolumeGrow,
    VolumeSet,
    VolumeView,
)
from polyvol.daemon.volumes import manifest_digests
from polyvol.daemon.volumes.advice import advice
from polyvol.daemon.volumes.clone_pins import ClonePins
from polyvol.daemon.volumes.exporting import (
    deleted_clause,
    end_export,
    end_exports,
    ended,
    export_live,
    export_snapshots,
)
from polyvol.daemon.volumes.failed_checkpoints import checkpoint_trouble
from polyvol.daemon.volumes.growth import grow_in_engine, grow_volume
from polyvol.daemon.volumes.incomplete_restores import restore_reason, restore_view
from polyvol.daemon.volumes.log_areas import LogAreas, inventory, rule_views
from polyvol.daemon.volumes.log_growth import LogGrowth
from polyvol.daemon.volumes.plan_views import plan_view, planned
from polyvol.daemon.volumes.removal import VolumeRemoval
from polyvol.daemon.volumes.scrub import Scrubs
from polyvol.daemon.volumes.settings import change_settings, log_limit_of
from polyvol.daemon.volumes.usage import shown_use
from polyvol.mapping.plans.clones import CloneRequest, plan_clone
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import CloneSource, Volume
from polyvol.mapping.specs import volume_spec
from polyvol.snapshot.snapshot import export_name


def _relocation(context: Context, volume: Volume) -> RelocationView | None:
    """How the relocation of a volume is; None if it was closed."""
    use = context.uses.get(volume.id)
    progress = context.relocations.get(volume.id) or RelocationProgress()
    with contextlib.suppress(context.engine_error):
        written = context.engine.volume_stats(volume.id)["write_bytes"]
        return progress.view(volume.relocation_rate, use, written)
    return None


class Volumes:
    """The verbs of volumes."""

    def __init__(self, context: Context, devices: Devices, scrubs: Scrubs) -> None:
        self._context = context
        self._scrubs = scrubs
        self._devices = devices
        self.log_areas = LogAreas(context)
        self.log_growth = LogGrowth(context, self.log_areas)
        self._removal = VolumeRemoval(context)
        self._pins = ClonePins(context, self._removal.remove)

    def start(self) -> None:
        """Settle incomplete verbs, then serve every volume, as far as its devices allow."""
        context = self._context
        manifest_digests.begin(context)
        self.log_areas.settle_all()
        for volume in context.catalog.volumes.all():
            if volume.state == "ready":
                self.serve(volume)
            else:
                self._removal.settle(volume)
        self._pins.release()

    def release_unneeded(self) -> None:
        """Finish incomplete deletions, and drop what was pinned for clones that are gone. The caller holds no
        lock."""
        self._removal.settle_all()
        self._pins.release()

    def serve(self, volume: Volume) -> None:
        """Load a volume into the engine and export it, or note why that failed."""
        self._context.volume_trouble.pop(volume.id, None)
        with isolate(self._context, f"serving volume {volume.name}", partial(self.not_served, volume)):
            if self._close(volume):  # an earlier error may have left it loaded
                self._hand_over(volume)
            else:
                self._catch_up(volume)
            self._export(volume)

    def settle(self, volume: Volume) -> None:
        """Retry the removal of a partly created or deleted volume. The caller holds its lock."""
        with isolate(self._context, f"removing volume {volume.shown_name}", volume=volume.shown_name):
            self._removal.remove(volume)

    def serve_again(self, volume: Volume, reason: str) -> None:
        """Unload a volume from the engine and load it again, after an error left an incomplete change there:
        the load applies the catalog's state. It has no clients; the caller holds its lock."""
        self.not_served(volume, reason)
        self.serve(self._context.find_volume(volume.name))

    def export_again(self, volume: Volume) -> None:
        """Export a volume that exists, whether this succeeds or not."""
        failed = partial(self.serve_again, volume)
        with isolate(self._context, f"exporting volume {volume.name} again", failed):
            export_live(self._context, volume)

    def finish(self, volume: Volume) -> None:
        """Complete what an earlier error left undone of a served volume: its exports, its growth in the
        engine, partly made files. The caller holds its lock."""
        context = self._context
        self.log_areas.settle(volume)
        there = {export["name"]: export["size"] for export in context.engine.exports()}
        with isolate(context, f"exporting volume {volume.name}", volume=volume.name):
            if volume.name not in there:
                export_live(context, volume)
            elif there[volume.name] < volume.size:
                grow_in_engine(context, volume)
            found = context.catalog.snapshots.of(volume.id)
            missing = [each for each in found if export_name(volume.name, each.name) not in there]
            export_snapshots(context, volume, missing)

    def not_served(self, volume: Volume, reason: str) -> None:
        """Stop serving a volume and its snapshots, and record the reason. The caller holds its lock."""
        context = self._context
        context.volume_trouble[volume.id] = reason
        text = f"volume {volume.shown_name} is not served: {reason}"
        context.events.add_once("warning", text, volume=volume.shown_name)
        with isolate(context, f"taking volume {volume.shown_name} out of service", volume=volume.shown_name):
            self._close(volume)

    def _close(self, volume: Volume) -> bool:
        """Have the engine close a volume, if it is open; False: it stays open, because clones need it."""
        context = self._context
        if not context.engine_has(volume):
            return True
        end_exports(context, volume)
        try:
            context.engine.remove_volume(volume.id)
        except context.engine_error:
            return not context.engine_has(volume)
        return True

    def _catch_up(self, volume: Volume) -> None:
        """Have the engine execute the outstanding rollbacks of a volume that it cannot close."""
        context = self._context
        with context.engine_errors(f"rolling back volume {volume.name}"):
            epoch = context.engine.volume_stats(volume.id)["epoch"]
            for rollback in context.catalog.rollbacks.of(volume.id):
                if rollback.at >= epoch:
                    context.engine.roll_back(volume.id, rollback.at, rollback.to)

    @reads
    def plan(self, request: VolumeCreate) -> PlanView:
        """The volume as it would be; changes nothing."""
        return plan_view(self._context, planned(self._context, request))

    def create(self, request: VolumeCreate) -> VolumeView:
        """Make a volume and export it."""
        self._removal.settle_all()  # so that their names and room are free
        self._make(partial(planned, self._context, request))
        return self.show(request.name, partitions=False)

    def clone(self, volume_name: str, name: str, request: CloneCreate) -> VolumeView:
        """Make a volume from a snapshot of another one, and export it."""
        context = self._context
        limit = log_limit_of(request.log_limit)
        wanted = CloneRequest(request.name, request.log_devices, request.processors, request.when_full, limit)
        with context.holding_served(volume_name, "volume clone", restoring=True) as source:
            snapshot = context.find_undeleted(source, name)
            self._make(lambda: plan_clone(wanted, source, snapshot, inventory(context)))
        text = f"volume {request.name} was cloned from {export_name(source.name, name)}"
        context.events.add("info", text, volume=request.name)
        return self.show(request.name, partitions=False)

    def make_for_restore(self, request: VolumeCreate, restore: RestoreRecord) -> Volume:
        """Make a volume that is not exported until the restore is complete."""
        self._make(partial(planned, self._context, request), restore)
        return self._context.find_volume(request.name)

    def _make(self, plan: Callable[[], VolumePlan], restore: RestoreRecord | None = None) -> None:
        context = self._context
        with context.catalog_lock:  # the plan holds until it is recorded
            found = plan()
            context.grow_processors(max(found.processors) + 1)
            volume = context.catalog.volumes.create(found)
        # Verbs that find it before hold its lock briefly; this must not fail and leave it 'creating'.
        with context.holding_all([volume], "volume create", wait_s=context.locks.wait_s, making=True):
            self._make_planned(volume, restore)

    def _make_planned(self, volume: Volume, restore: RestoreRecord | None) -> None:
        context = self._context
        try:
            for device in self._removal.made_for(volume):
                device_files.make(context, device, context.path(device))
            self._hand_over(volume)
            if restore is not None:
                context.catalog.restores.begin(replace(restore, volume=volume.id))
                volume = replace(volume, restoring=True)
            context.catalog.volumes.set_state(volume.id, "ready")
            self._export(volume)
        except BaseException:
            self._removal.undo_create(volume)
            raise

    def delete(self, name: str, refuse: Callable[[Volume], None]) -> VolumeDeleted:
        """Delete a volume that no client is connected to, with its snapshots; clones of them stay as they
        are. `refuse` raises if something else needs it."""
        with self._context.holding(name, "volume delete") as volume:
            deleted = self.delete_held(volume, refuse)
        self.release_unneeded()
        return deleted

    def delete_held(self, volume: Volume, refuse: Callable[[Volume], None]) -> VolumeDeleted:
        """As `delete`; the caller holds the volume's lock, and calls `release_unneeded` after releasing
        it."""
        context, name = self._context, volume.name
        snapshots = context.catalog.snapshots.of(volume.id)
        if volume.state != "ready":
            self._removal.remove(volume)  # an earlier removal was incomplete
            return VolumeDeleted(name=name, snapshots=len(snapshots))
        refuse(volume)
        exports: list[SnapshotRecord | None] = [None, *snapshots]
        if volume.id in context.volume_trouble:
            exports = []
        self._refuse_open(volume, exports)
        with ended(exports, partial(self._end_export, volume), partial(self._export_undeleted, volume)):
            if exports:
                context.restoring.pop(volume.id, None)
            with context.catalog_lock:
                refuse(volume)
                gone = self._pins.record(volume)
                if gone is None:
                    context.catalog.volumes.set_state(volume.id, "deleting")
        if gone is not None:
            self._pins.keep(volume, gone)
            return VolumeDeleted(name=name, snapshots=len(snapshots))
        self._removal.remove(replace(volume, state="deleting"))
        return VolumeDeleted(name=name, snapshots=len(snapshots))

    def change(self, name: str, request: VolumeSet) -> VolumeView:
        """Change a volume's settings."""
        with self._context.holding(name, "volume set") as volume:
            change_settings(self._context, self.log_areas, volume, request)
            return self.show(name, partitions=False)

    def grow(self, name: str, request: VolumeGrow) -> VolumeView:
        """Make a volume larger."""
        with self._context.holding_served(name, "volume grow") as volume:
            grow_volume(self._context, self.log_areas, volume, request)
        return self.show(name, partitions=False)

    def add_log(self, name: str, request: LogAdd) -> VolumeView:
        """Give a volume one more log area, or several."""
        with self._context.holding_served(name, "volume add-log", restoring=True) as volume:
            self.log_areas.add(volume, request)
        return self.show(name, partitions=False)

    @reads
    def list_all(self, *, kept: bool = False, counted: bool = False) -> list[VolumeView]:
        """All volumes; with those that are deleted and kept for their clones, if `kept`. `counted`: with what
        was last counted of what they hold, and their relocation."""
        context = self._context
        volumes = [each for each in context.catalog.volumes.all() if kept or not each.kept]
        views = [self._view(volume) for volume in volumes]
        if not counted:
            return views
        return [
            replace(view, use=context.uses.get(volume.id), relocation=_relocation(context, volume))
            if view.space is not None
            else view
            for volume, view in zip(volumes, views, strict=True)
        ]

    @reads
    def show(self, name: str, *, partitions: bool) -> VolumeView:
        """One volume, with its partitions if asked for."""
        volume = self._context.find_volume(name)
        use = shown_use(self._context, volume)
        relocation = None if use is None else _relocation(self._context, volume)
        view = self._view(volume, partitions=partitions)
        view = replace(view, use=use, relocation=relocation)
        if view.space is None or view.space.level == "ok":
            return view
        return replace(view, advice=advice(volume, use, self.log_growth.room(volume)))

    def _hand_over(self, volume: Volume) -> None:
        context = self._context
        manifest_digests.check(context, volume)
        partitions = context.catalog.volumes.partitions(volume.id)
        context.grow_processors(max(partition.processor for partition in partitions) + 1)
        spec = volume_spec(context.catalog, volume, context.state_dir)
        try:
            with context.engine_errors(f"taking volume {volume.name} into service"):
                deleted = context.engine.add_volume(spec)
        except EngineFailed as error:
            if error.kind == "corrupt":
                raise JournalsUnusable(name=volume.name, why=error.facts["why"]) from error
            raise
        context.deleted_snapshots[volume.id] = frozenset(deleted)
        if deleted:
            context.events.add_once("warning", f"volume {volume.name}: {deleted_clause(context, volume)}")
        if volume.manifests != len(partitions):
            context.catalog.volumes.set_manifests(volume.id, len(partitions))
        context.ask_when_full(volume)

    def export_live(self, volume: Volume) -> None:
        """Export a volume itself, unless a backup is being restored to it."""
        export_live(self._context, volume)

    def _export(self, volume: Volume) -> None:
        context = self._context
        if volume.kept:
            return
        export_live(context, volume)
        export_snapshots(context, volume, context.catalog.snapshots.of(volume.id))

    def _export_name(self, volume: Volume, snapshot: SnapshotRecord | None) -> str:
        """The name of the export of a volume itself, or of its snapshot."""
        if snapshot is None:
            return self._context.restoring.get(volume.id, volume.name)
        return export_name(volume.name, snapshot.name)

    def _refuse_open(self, volume: Volume, exports: Sequence[SnapshotRecord | None]) -> None:
        """VolumeInUse if clients are connected to any of these exports of a volume."""
        clients = self._context.connections(self._export_name(volume, each) for each in exports)
        if clients:
            raise VolumeInUse(name=volume.name, **counted_clients(clients))

    def _end_export(self, volume: Volume, snapshot: SnapshotRecord | None) -> None:
        clients = end_export(self._context, self._export_name(volume, snapshot))
        if clients:
            raise VolumeInUse(name=volume.name, **counted_clients(clients))

    def _export_undeleted(self, volume: Volume, snapshot: SnapshotRecord | None) -> None:
        """Make an export again of a volume that was to be deleted, if it exists on."""
        if self._context.catalog.volumes.get(volume.id) != volume:
            return
        if snapshot is None:
            self.export_again(volume)
        else:
            export_snapshots(self._context, volume, [snapshot])

    def _view(self, volume: Volume, *, partitions: bool = False) -> VolumeView:
        context = self._context
        names = context.device_names()
        snapshots = context.catalog.snapshots.of(volume.id)
        wanted = {volume.name, *(export_name(volume.name, snapshot.name) for snapshot in snapshots)}
        exports = [
            ExportView(name=export["name"], read_only=export["read_only"], connections=export["connections"])
            for export in context.exports()
            if export["name"] in wanted
        ]
        reason = context.volume_trouble.get(volume.id)
        serving = volume.state == "ready" and reason is None
        devices = context.catalog.volumes.devices(volume.id)
        bad = bad_block_views(context, volume, names) if serving else []
        degraded = self._degraded(volume, devices, bad) if serving else None
        restore = restore_view(context, volume, snapshots)
        reasons = (reason, None if restore is None else restore_reason(volume.name, restore), degraded)
        adopted = {device.id for device in context.catalog.devices.all() if device.adopted}
        return VolumeView(
            name=volume.name,
            uuid=str(volume.uuid),
            state=_state(volume, serving=serving, degraded=degraded is not None),
            reason="; ".join(each for each in reasons if each) or None,
            size=volume.size,
            partition_size=volume.partition_size,
            partition_count=volume.partition_count,
            processors=context.catalog.volumes.processors(volume.id),
            devices=[names[device] for device in devices],
            base=next((names[device] for device in devices if device in adopted), None),
            source=self._source_view(volume),
            when_full=volume.when_full,
            logs=self.log_areas.views(volume, names, serving=serving),
            log_rules=rule_views(context.catalog.log_areas.rules(volume.id), names),
            space=self.log_areas.space(volume) if serving else None,
            dropped=[
                DroppedSnapshotView(
                    snapshot=dropped.name,
                    created=iso(dropped.instant_ns),
                    dropped=iso(dropped.dropped_ns),
                    freed=dropped.freed,
                )
                for dropped in context.catalog.snapshots.dropped(volume.id)
            ],
            exports=exports,
            connections=sum(export.connections for export in exports)
            + (0 if restore is None else restore.connections),
            snapshots=[snapshot.name for snapshot in snapshots],
            created=iso(volume.created_ns),
            bad_blocks=bad,
            last_scrub=self._scrubs.last(volume),
            hooks=hook_view(context.catalog.hooks.of_volume(volume.id)),
            restore=restore,
            log_limit=LogLimitView(bytes=volume.log_bound, auto=volume.log_limit is None),
            partitions=partition_views(context, volume, names) if partitions else None,
        )

    def _source_view(self, volume: Volume) -> CloneSourceView | None:
        """What a volume was made from, by the names that its source had."""
        if volume.source is None:
            return None
        source = self._source(volume.source)
        record = self._context.catalog.snapshots.at(source.id, volume.source.epoch)
        assert record is not None, "RM1"
        return CloneSourceView(
            volume=source.shown_name,
            snapshot=record.shown_name,
            deleted=record.kept,
        )

    def _source(self, source: CloneSource) -> Volume:
        found = self._context.catalog.volumes.get(source.volume)
        assert found is not None, "RM1"
        return found

    def _degraded(self, volume: Volume, devices: list[int], bad: list[BadBlockView]) -> str | None:
        """Why a volume that is served is degraded, or None. A clone is, where its source is."""
        context = self._context
        troubles = device_troubles(context)
        reasons = []
        logs = {extent.device for log in context.catalog.log_areas.of(volume.id) for extent in log.extents}
        used = [*devices, *sorted(logs.difference(devices))]
        if not troubles.keys().isdisjoint(used):
            partitions = context.catalog.volumes.partitions(volume.id)
            reasons.append(volume_trouble(used, partitions, troubles))
        if bad:
            reasons.append(bad_blocks_clause(bad))
        if context.state_trouble is not None:
            reasons.append(context.state_trouble)
        reasons += [context.file_trouble.get(volume.id), checkpoint_trouble(context, volume.id)]
        reasons.append(deleted_clause(context, volume))
        if volume.source is not None:
            source = self._source(volume.source)
            bad = bad_block_views(context, source, context.device_names())
            reason = self._degraded(source, context.catalog.volumes.devices(source.id), bad)
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
