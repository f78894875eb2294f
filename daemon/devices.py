"""The verbs of devices: add, remove, list, show, and what happens with them at start.

How it works      add: look, plan, record as 'adding', make the file and the label, open it in the engine,
                  record as 'ready'. remove: record as 'removing', close, take the label off, forget. A device
                  that is missing at start is had in the engine all the same, as one whose calls all fail, so
                  that its volumes are served as far as they go. A disk that goes or comes is noticed
                  (daemon/udev.py). retry: look at its path, or another one,
                  check that it is the device, have the engine open it anew while it is in use. Adding the
                  path of a device that is known and was missing is a retry, at its new path.
Durability        A kill in the middle of add or remove is settled at the next start: the device is forgotten
                  and its label taken off. A kill after they returned changes nothing.
Errors            mapping/errors.py, EngineFailed. At start nothing raises: `device_trouble` has the findings.
"""

import contextlib
import logging
from pathlib import Path
from uuid import uuid4

from polyvol.daemon.context import Context
from polyvol.daemon.errors import BadRequest
from polyvol.daemon.health import device_troubles
from polyvol.daemon.requests import DeviceAdd, DeviceRetry
from polyvol.daemon.short_devices import ShortDevices
from polyvol.daemon.views import DeviceView, iso
from polyvol.mapping import occupied
from polyvol.mapping.device import (
    Device,
    Found,
    clear_label,
    identity_of,
    inspect,
    make_device,
    plan_device,
    remove_file,
    trouble_with,
)
from polyvol.mapping.direct import check_direct
from polyvol.mapping.errors import (
    DeviceHasContents,
    DeviceInUse,
    DeviceNotReady,
    DevicePathInUse,
    DeviceStillFaulty,
    DiskInUse,
    ForeignLabel,
    NameInUse,
    PolyvolError,
)
from polyvol.mapping.label import Label
from polyvol.mapping.names import check_name, name_from, unique_name

_log = logging.getLogger("polyvol")


class Devices:
    """The verbs of devices."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.short = ShortDevices(context)

    def start(self, *, clean: bool) -> None:
        """Settle what is half done, check every device against the catalog, open those that are right.
        `clean`: what earlier runs wrote is not in doubt."""
        context = self._context
        for device in context.catalog.devices():
            if device.state != "ready" and device.made_for is None:
                self._forget(device)
            elif device.state == "ready":
                self._open(device, clean=clean)

    def _open(self, device: Device, *, clean: bool) -> None:
        """Check a device and open it in the engine; if it is not right, note why and have it absent there."""
        context = self._context
        path = context.path(device)
        self.short.look(device, path)
        reason = trouble_with(device, path, context.catalog.uuid) or self.short.clause(device)
        if reason is None:
            try:
                context.open_device(device, path)
                self._opened(device, path)
            except context.engine_error as error:
                reason = str(error)
        if reason is not None:
            context.device_trouble[device.id] = reason
            _log.warning("device %s: %s", device.name, reason, extra={"DEVICE": device.name})
            with context.engine_errors(f"going on without device {device.name}"):
                context.engine.absent_device(
                    device.id,
                    sparse=device.sparse,
                    clean=clean,
                    direct=device.direct,
                    size=device.size,
                )

    def retry(self, request: DeviceRetry, name: str) -> DeviceView:
        """Open a device anew, at its path or at another one, while it is in use. The caller holds `changes`.

        DeviceNotReady if what is there is not the device: then nothing has changed. DeviceStillFaulty if it
        is, and fails again at once."""
        context = self._context
        device = context.find_device(name)
        path = context.path(device) if request.path is None else Path(request.path)
        if not path.is_absolute() or "\0" in str(path):
            raise BadRequest(why=f"path {request.path!r} is not absolute")
        self._refuse_other(device, path)
        self._reopen(device, path)
        shown = self.show(name)
        if shown.state != "ok":
            raise DeviceStillFaulty(name=name, reason=shown.reason)
        return shown

    def gone(self, number: int) -> None:
        """The disk of this number is no more: the devices that it was are missing. Under `changes`."""
        context = self._context
        for device in context.catalog.devices():
            if context.disk_numbers.get(device.id) != number:
                continue
            del context.disk_numbers[device.id]
            if device.id not in context.device_trouble:
                context.device_trouble[device.id] = f"{context.path(device)} is gone"
                context.events.add("warning", f"device {device.name} is gone: its disk was taken out")

    def came(self, path: Path) -> DeviceView | None:
        """A disk has come, or become another, at this path: if it is a device that is missing, at the path
        that it had or by its label, it is opened anew. None if it is nothing of that kind. Under
        `changes`."""
        context = self._context
        if not context.device_trouble:
            return None
        identity = identity_of(path)
        for device in context.catalog.devices():
            known = context.path(device)
            if device.id not in context.device_trouble or identity != identity_of(known):
                continue
            if self.short.clause(device) is not None:
                continue  # a person has to say that it is whole
            if trouble_with(device, known, context.catalog.uuid) is None:
                return self.retry(DeviceRetry(), device.name)
        return self.found(path, missing_only=True)

    def found(self, path: Path, *, missing_only: bool = False) -> DeviceView | None:
        """A file or disk has appeared at this path: if it is a device that is missing or faulty, by its
        label, it is opened anew there. None if it is nothing of that kind. The caller holds `changes`."""
        context = self._context
        found = inspect(path)
        label = None if found is None else found.label
        if not isinstance(label, Label) or label.catalog != context.catalog.uuid:
            return None
        troubles = context.device_trouble if missing_only else device_troubles(context)
        self.short.note_found()
        for device in context.catalog.devices():
            if device.uuid != label.device or self.short.clause(device) is not None:
                continue
            if device.id in troubles:
                return self.retry(DeviceRetry(path=str(path)), device.name)
        return None

    def _refuse_other(self, device: Device, path: Path) -> None:
        """An error unless this path is that device."""
        context = self._context
        for other in context.catalog.devices():
            # An adopted one has no label, so that only its path tells it from others.
            here = identity_of(context.path(other))
            if other.id != device.id and here is not None and here == identity_of(path):
                raise DevicePathInUse(path=path, name=other.name)
        reason = trouble_with(device, path, context.catalog.uuid)
        if reason is not None:
            raise DeviceNotReady(name=device.name, reason=reason)

    def _reopen(self, device: Device, path: Path) -> None:
        context = self._context
        with context.engine_errors(f"opening device {device.name} anew"):
            context.engine.reopen_device(device.id, str(path))
        self.short.forget(device)
        context.device_trouble.pop(device.id, None)
        self._opened(device, path)
        if path != context.path(device):
            context.catalog.set_device_path(device.id, self._stored_path(path))

    def open_missing(self) -> None:
        """Try every device again that was not right. The caller holds `changes`."""
        for device in self._context.catalog.devices():
            missing = device.state == "ready" and device.id in self._context.device_trouble
            if missing and self.short.clause(device) is None:
                with contextlib.suppress(PolyvolError):
                    self.retry(DeviceRetry(), device.name)

    def list_all(self) -> list[DeviceView]:
        """All devices."""
        context = self._context
        devices = context.catalog.devices()
        used = context.catalog.used_bytes()
        users = context.catalog.users()
        volumes = {volume.id: volume.name for volume in context.catalog.volumes()}
        stats = {entry["device"]: entry for entry in context.engine.stats()["devices"]}
        troubles = device_troubles(context)
        views = []
        for device in devices:
            trouble = troubles.get(device.id)
            counts = stats.get(device.id)
            views.append(
                DeviceView(
                    name=device.name,
                    uuid=str(device.uuid),
                    path=str(context.path(device)),
                    kind=device.kind,
                    role="adopted" if device.adopted else "storage",
                    size=device.size,
                    capacity=device.data_area.length,
                    free=0 if device.adopted else device.data_area.length - used.get(device.id, 0),
                    sparse=device.sparse,
                    direct=device.direct,
                    made_for=None if device.made_for is None else volumes.get(device.made_for),
                    volumes=[volumes[user] for user in users.get(device.id, ()) if user in volumes],
                    state="ok" if trouble is None else trouble.state,
                    reason=None if trouble is None else trouble.reason,
                    errors=counts["errors"] if counts else 0,
                    last_errno=counts["last_errno"] if counts else 0,
                    created=iso(device.created_ns),
                )
            )
        return views

    def show(self, name: str) -> DeviceView:
        """One device."""
        self._context.find_device(name)
        return next(view for view in self.list_all() if view.name == name)

    def add(self, request: DeviceAdd) -> tuple[DeviceView, bool]:
        """Add a device, or bring back one that was missing (then True). The caller holds `changes`."""
        path = Path(request.path)
        if not path.is_absolute() or "\0" in request.path:
            raise BadRequest(why=f"path {request.path!r} is not absolute")
        if request.name is not None:
            check_name("device", request.name)
        found = inspect(path)
        known = self._known(path, found)
        if known is not None:
            return self._bring_back(known, path), True
        if found is not None and found.kind == "block":
            self._refuse_occupied(path, overwrite=request.force, adopt=request.adopt)
        kind, size = plan_device(
            path,
            found,
            size=request.size,
            preallocate=request.preallocate,
            adopt=request.adopt,
            force=request.force,
        )
        name = self._free_name(request.name, path)
        if request.direct:
            check_direct(path, found)
        device = Device(
            0,
            uuid4(),
            name,
            self._stored_path(path),
            kind,
            request.adopt,
            size,
            kind == "block" or not request.preallocate,
            None,
            "adding",
            self._context.clock(),
            request.direct,
        )
        if request.force and kind == "block" and not request.adopt:
            occupied.clear_signatures(path)
        self._make(device, path, preallocate=request.preallocate, was_there=found is not None)
        return self.show(name), False

    def remove(self, name: str) -> None:
        """Remove a device that no volume uses; its file or disk stays, without its label. Under `changes`."""
        context = self._context
        device = context.find_device(name)
        users = context.catalog.users().get(device.id, [])
        if device.made_for is not None:
            users = sorted({*users, device.made_for})
        if users:
            volumes = {volume.id: volume.name for volume in context.catalog.volumes()}
            raise DeviceInUse(name=name, volumes=", ".join(volumes[user] for user in users))
        with context.engine_errors(f"closing device {name}"):
            context.engine.close_device(device.id)
        context.catalog.set_device_state(device.id, "removing")
        self._forget(device)

    def _make(self, device: Device, path: Path, *, preallocate: bool, was_there: bool) -> None:
        context = self._context
        device = context.catalog.add_device(device)
        try:
            make_device(device, path, context.catalog.uuid, preallocate=preallocate)
            with context.engine_errors(f"opening device {device.name}"):
                context.open_device(device, path)
            self._opened(device, path)
            context.catalog.set_device_state(device.id, "ready")
        except BaseException:
            if not was_there:
                remove_file(path)
            self._forget(device)
            raise

    def _forget(self, device: Device) -> None:
        context = self._context
        # A device that cannot be written to keeps its label, which nothing will take for another's.
        with contextlib.suppress(PolyvolError):
            clear_label(device, context.path(device), context.catalog.uuid)
        context.catalog.forget_device(device.id)
        self.short.forget(device)
        context.device_trouble.pop(device.id, None)
        context.disk_numbers.pop(device.id, None)

    def _opened(self, device: Device, path: Path) -> None:
        """Note by which number the kernel knows the disk that has just been opened."""
        identity = identity_of(path)
        if device.kind == "block" and identity is not None:
            self._context.disk_numbers[device.id] = identity[1]

    def _refuse_occupied(self, path: Path, *, overwrite: bool, adopt: bool) -> None:
        """An error if somebody uses the disk, or, unless that is wanted, if there is something on it."""
        use = occupied.disk_use(path)
        if use is not None:
            raise DiskInUse(path=path, use=use)
        contents = None if overwrite or adopt else occupied.contents_of(path)
        if contents is not None:
            raise DeviceHasContents(path=path, contents=contents)

    def _known(self, path: Path, found: Found | None) -> Device | None:
        """The device that this path is, if it was missing; an error if it is one that is not missing."""
        context = self._context
        if found is None:
            return None
        for device in context.catalog.devices():
            same = identity_of(context.path(device)) == found.identity
            label = found.label
            labelled = (
                isinstance(label, Label)
                and label.catalog == context.catalog.uuid
                and label.device == device.uuid
            )
            if not same and not labelled:
                continue
            if device.id in context.device_trouble:
                if trouble_with(device, path, context.catalog.uuid) is None:
                    return device
            elif same:
                raise DevicePathInUse(path=path, name=device.name)
            else:
                raise ForeignLabel(path=path, owner=f"device {device.name}, which is {context.path(device)}")
        return None

    def _bring_back(self, device: Device, path: Path) -> DeviceView:
        self._reopen(device, path)
        return self.show(device.name)

    def _free_name(self, wanted: str | None, path: Path) -> str:
        taken = set(self._context.device_names().values())
        if wanted is None:
            return unique_name(name_from(path.name, "device"), taken)
        if wanted in taken:
            raise NameInUse(noun="device", name=wanted)
        return wanted

    def _stored_path(self, path: Path) -> str:
        state_dir = self._context.state_dir
        return str(path.relative_to(state_dir) if path.is_relative_to(state_dir) else path)
