"""Removing volumes for good: those that are deleted, half created, or kept for no clone any more.

How it works      `remove` takes a volume without exports from the engine, clears its extents, removes the
                  files made for it, and forgets it; each step can be repeated. What fails is a reason in
                  `volume_trouble`, and is tried again by `settle`: at the next reload, start, create or
                  delete.
Invariants        VR1 a volume is known by its id, never by its name: another volume may have that by now;
                  VR2 what is half removed is never served, and keeps no other volume from being served.
Owner and locks   The caller holds the volume's lock, or it is the start; that of `settle_all` holds none.
Durability        The catalog says 'deleting' before anything is taken away, and forgets the volume when all
                  is gone.
Errors            EngineFailed, DeleteUnfinished; none leave `settle` and `undo_create`.
"""

import shutil
from contextlib import suppress
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.devices import files as device_files
from polyvol.daemon.devices.health import unusable_devices
from polyvol.daemon.errors import DeleteUnfinished, EngineFailed, VolumeBusy
from polyvol.daemon.isolation import isolate
from polyvol.mapping.device import zero_extents
from polyvol.mapping.durable import sync_directory
from polyvol.mapping.errors import DeviceNotReady, UnknownVolume
from polyvol.mapping.extent import Extent
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import Volume


class VolumeRemoval:
    """Removes volumes of one context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def remove(self, volume: Volume) -> None:
        """Delete a volume that has no exports, for good. Repeatable."""
        context = self._context
        if volume.state != "deleting":
            context.catalog.volumes.set_state(volume.id, "deleting")
        if context.engine_has(volume):
            try:
                context.engine.remove_volume(volume.id)
            except context.engine_error as error:
                # Else it could not make all of it durable, which nobody needs any more.
                if context.engine_has(volume):
                    what = f"taking volume {volume.shown_name} out of service"
                    failed = EngineFailed(what=what, why=error)
                    context.volume_trouble[volume.id] = failed.message
                    raise failed from error
        self.settle(volume)
        if volume.id in context.volume_trouble:
            raise DeleteUnfinished(name=volume.shown_name, reason=context.volume_trouble[volume.id])

    def undo_create(self, volume: Volume) -> None:
        """Best effort: what cannot be undone now is tried again."""
        context = self._context
        what = f"undoing the creation of volume {volume.name}"
        with isolate(context, what, partial(context.volume_trouble.__setitem__, volume.id)):
            with suppress(context.engine_error):
                context.engine.unexport(volume.name)
            self.remove(volume)

    def settle(self, volume: Volume) -> None:
        """Finish the removal of a volume that is half created or half deleted, or note why that cannot be
        done now."""
        context = self._context

        def failed(reason: str) -> None:
            context.volume_trouble[volume.id] = reason
            text = f"the space of volume {volume.shown_name}, which is deleted, could not be given back yet"
            context.events.add_once("warning", f"{text}: {reason}", volume=volume.shown_name)

        with isolate(context, f"removing volume {volume.name}", failed):
            self._give_back(volume)

    def settle_all(self) -> None:
        """Try again what could not be finished; what another verb has now is left to it."""
        context = self._context
        for volume in context.catalog.volumes.all():
            if volume.state != "ready":
                with (
                    isolate(context, f"removing volume {volume.shown_name}", volume=volume.shown_name),
                    suppress(VolumeBusy, UnknownVolume),
                    context.holding_all([volume], "volume delete", wait_s=0.0),
                ):
                    now = context.catalog.volumes.get(volume.id)
                    if now is not None and now.state != "ready":  # otherwise its creation has ended
                        self.remove(now)

    def made_for(self, volume: Volume) -> list[Device]:
        """The devices that were made for a volume."""
        return [device for device in self._context.catalog.devices.all() if device.made_for == volume.id]

    def _give_back(self, volume: Volume) -> None:
        """Clear a volume's extents, remove its files, forget it. Repeatable."""
        context = self._context
        made = self.made_for(volume)
        made_ids = {device.id for device in made}
        by_id = {device.id: device for device in context.catalog.devices.all()}
        unusable = unusable_devices(context)
        extents: dict[int, list[Extent]] = {}
        catalog = context.catalog
        for holder in (catalog.volumes.partitions(volume.id), catalog.log_areas.of(volume.id)):
            for extent in (extent for item in holder for extent in item.extents):
                extents.setdefault(extent.device, []).append(extent)
        for identity, runs in extents.items():
            device = by_id[identity]
            if identity in made_ids or device.adopted:
                continue
            if identity in unusable:
                raise DeviceNotReady(name=device.name, reason=unusable[identity])
            with context.holding_device(device, f"clearing the space of volume {volume.name}"):
                zero_extents(device, device_files.file_of(context, device), runs)
        for device in made:
            with context.holding_device(device, "being removed"):
                device_files.unmake(context, device)
                context.device_trouble.pop(device.id, None)
        for directory in (context.volume_directory(volume), context.manifest_directory(volume)):
            if directory.exists():
                shutil.rmtree(directory)
            sync_directory(directory.parent)  # nobody would remove it once it is forgotten
        with context.catalog_lock:
            context.catalog.volumes.forget(volume.id)
        context.volume_trouble.pop(volume.id, None)
