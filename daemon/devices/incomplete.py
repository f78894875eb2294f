"""Incomplete devices: partly added or partly removed; hidden from placement, then undone or finished.

How it works      The catalog says 'adding' before a device is made, and 'removing' before any of it is
                  removed. `forget` is the common last step: it closes the device, takes
                  its label off, or removes the file that add has made, and removes it from the catalog.
                  `settle` does that for each device that an error or a kill left in one of these states.
Invariants        HD1 a device with extents of volumes is never forgotten; HD2 a device whose add or remove is
                  running (`underway`, changed under `catalog_lock`) is left to that verb.
Owner and locks   `settle` takes the lock of each device; the caller holds none of a volume. The caller of
                  `forget` holds the device's lock.
Durability        After `forget` the device is forgotten also after power loss. What it could not do is
                  retried by the next `settle`.
Errors            None leave `settle`: they are events. `forget`: those of the catalog.
"""

from contextlib import suppress

from polyvol.daemon.context import Context
from polyvol.daemon.devices.files import close, close_device, keep, open_checked, unmake
from polyvol.daemon.devices.shrunk import ShrunkDevices
from polyvol.daemon.isolation import isolate
from polyvol.mapping.device import clear_label
from polyvol.mapping.errors import DeviceNotReady, UnknownDevice
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import UNDER_WAY


class IncompleteDevices:
    """The devices that are not 'ready', but for those that are made for volumes."""

    def __init__(self, context: Context, shrunk: ShrunkDevices) -> None:
        self._context = context
        self._shrunk = shrunk
        self.underway: set[int] = set()

    def finish_used(self) -> None:
        """Set a device that has extents of volumes to 'ready' (HD1): an earlier version placed volumes on
        devices whose add or remove had failed."""
        context = self._context
        users = context.catalog.devices.users()
        for device in context.catalog.devices.all():
            if device.unfinished is not None and device.id in users:
                with isolate(context, f"taking device {device.name} into use", DEVICE=device.name):
                    context.catalog.devices.set_state(device.id, "ready")
                    half = f"was being {UNDER_WAY[device.state]}"
                    text = f"device {device.name} {half}, and volumes have extents on it: it stays"
                    context.events.add("warning", text, DEVICE=device.name)

    def settle(self) -> None:
        """Undo incomplete adds and finish incomplete removes, as far as possible now."""
        context = self._context
        with context.catalog_lock:
            devices = [device for device in context.catalog.devices.all() if device.unfinished is not None]
            users = {*context.catalog.devices.users(), *self.underway} if devices else set()
        for device in devices:
            if device.id not in users:
                what = f"forgetting device {device.name}, which is half {UNDER_WAY[device.state]},"
                with (
                    isolate(context, what, DEVICE=device.name),
                    suppress(UnknownDevice),
                    context.holding_device(device, "being forgotten", wait_s=0.0) as now,
                ):
                    if now.state == device.state:
                        self.forget(device)

    def forget(self, device: Device) -> None:
        """Take the label off, if it is there and can be, or the file that add has made; forget the device."""
        context = self._context
        with isolate(context, f"closing device {device.name}", lambda _: None):  # it may not be open
            close(context, device.id)
        # A device that cannot be written to, or is a different one, keeps its label; its UUID identifies it.
        what = f"taking the label off device {device.name}, which is forgotten,"
        with isolate(context, what, DEVICE=device.name), suppress(DeviceNotReady):
            if device.made and device.state == "adding":
                unmake(context, device)
            else:
                if device.id not in context.files:
                    keep(context, device, open_checked(context, device, context.path(device)).file)
                clear_label(device, context.files[device.id], context.catalog.uuid)
        close_device(context, device.id)
        with context.catalog_lock:
            context.catalog.devices.forget(device.id)
        self._shrunk.forget(device)
        context.device_trouble.pop(device.id, None)
