"""The verbs of devices: add, remove, list, show, and their opening at a start.

How it works      add: inspect, open and hold (daemon/devices/files.py), inspect again, plan, record as
                  'adding', make the file and the label, open it in the engine, record as 'ready'. remove:
                  record as 'removing', close, remove the label, forget. At start each device is opened, held
                  and checked; then a generation begins, and is written into the labels of those that pass.
                  A device that is missing, or held by another program, is in the engine too, as one whose
                  calls all fail, so that its volumes are served as far as possible. udev.py notices disks
                  that are removed or added. retry: inspect its path, or another one, check that it is the
                  device, have the engine reopen it while it is in use. Adding the path of a known device that
                  was missing is a retry, at its new path.
Invariants        DV1 two devices never have bytes in common, whatever paths they have.
                  DV2 no file that polyvold keeps its own state in is a device.
                  DV3 nothing is placed on a device that is not 'ready' (health.unusable_devices).
Owner and locks   All actions on a device hold its lock (daemon/locks.py); its name and its users are read and
                  changed under `catalog_lock`. A device that is being added has a name and a lock only once
                  it is recorded: until then it has a claim (daemon/devices/claims.py).
Durability        The next start settles an add or remove that a kill interrupted: the device is forgotten,
                  its label removed, and the file that add made is deleted. Leftovers of a failed add or
                  remove are settled the same way, also at the next add, remove or reload (incomplete.py). A
                  kill after they returned changes nothing.
Errors            mapping/errors.py, EngineFailed. At start nothing raises: `device_trouble` has the findings.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import uuid4

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.devices.claims import Claims
from polyvol.daemon.devices.files import (
    Checked,
    begin_run,
    check_again,
    close,
    close_device,
    identities,
    is_alive,
    keep,
    make,
    open_checked,
    remark_on,
    renew_label,
)
from polyvol.daemon.devices.health import Trouble, device_troubles
from polyvol.daemon.devices.incomplete import IncompleteDevices
from polyvol.daemon.devices.shrunk import ShrunkDevices
from polyvol.daemon.devices.start import open_all
from polyvol.daemon.errors import BadRequest, DeviceBusy
from polyvol.daemon.isolation import isolate
from polyvol.daemon.state.directory import refuse_own
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.devices import DeviceAdd, DeviceRetry, DeviceView
from polyvol.daemon.workers import Workers
from polyvol.mapping import occupied
from polyvol.mapping.device import inspect, inspect_open, plan_device, trouble_with
from polyvol.mapping.direct import check_direct
from polyvol.mapping.errors import (
    DeviceHasContents,
    DeviceInUse,
    DeviceNotEmpty,
    DeviceNotReady,
    DeviceStillFaulty,
    DeviceUnusable,
)
from polyvol.mapping.names import check_free, check_name, name_from, unique_name
from polyvol.mapping.opening import OpenFile, identity_of
from polyvol.mapping.records.devices import UNFINISHED, Device

OPENED_S = 10.0
"""How long a reload waits for missing devices; one that hangs goes on by itself."""
STOP_S = 5.0
"""How long a stop waits for retries under way."""
START_PATIENCE_S = 3.0
"""How long a start waits for devices whose holder may be a process that is ending."""
_log = logging.getLogger("polyvol")


class Devices:
    """The verbs of devices."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.shrunk = ShrunkDevices(context)
        self._incomplete = IncompleteDevices(context, self.shrunk)
        self._claims = Claims(context)
        self._opening = Workers("polyvol-open")

    def start(self, *, clean: bool, passed: Mapping[str, int] | None = None) -> None:
        """Settle incomplete verbs, check every device against the catalog, open those that match. `clean`:
        the writes of earlier runs are not in doubt. `passed`: descriptors that the previous process held, by
        device UUID; they are taken over or closed."""
        context = self._context
        fds = dict(passed or {})
        until, users = time.monotonic() + START_PATIENCE_S, occupied.file_users()
        self._incomplete.finish_used()
        devices = [device for device in context.catalog.devices.all() if device.state == "ready"]
        checked_devices, reasons = open_all(
            context, self.shrunk, devices, until=until, users=users, passed=fds
        )
        for fd in fds.values():
            os.close(fd)
        begin_run(context, checked_devices)
        for device in devices:
            self._start(device, reasons.get(device.id), clean=clean)
        self._incomplete.settle()

    def _start(self, device: Device, reason: str | None, *, clean: bool) -> None:
        """Open a device in the engine; if `reason` says what is wrong, note it and have it absent there."""
        context = self._context
        reasons = [] if reason is None else [reason]
        if not reasons:
            with isolate(context, f"opening device {device.name}", reasons.append):
                context.open_device(device, context.files[device.id])
        if reasons:
            close_device(context, device.id)
            context.device_trouble[device.id] = reasons[0]
            text = f"device {device.name} is missing: {reasons[0]}"
            context.events.add("warning", text, DEVICE=device.name)
            with isolate(context, f"going on without device {device.name}", DEVICE=device.name):
                context.engine.absent_device(
                    device.id,
                    sparse=device.sparse,
                    clean=clean,
                    direct=device.direct,
                    size=device.size,
                )

    def retry(self, request: DeviceRetry, name: str) -> DeviceView:
        """Open a device again, at its path or at another one, while it is in use.

        DeviceNotReady if the file there is not the device: then nothing has changed. DeviceStillFaulty if it
        is, and fails again at once."""
        shown = self._retry(request, self._context.find_device(name), lambda: True)
        assert shown is not None, "nothing was asked that could have ended"
        return shown

    def _retry(self, request: DeviceRetry, device: Device, wanted: Callable[[], bool]) -> DeviceView | None:
        """As `retry`; None if the device is not `wanted` any more when its lock is held."""
        context, name = self._context, device.name
        if device.unfinished is not None:
            raise DeviceNotReady(name=name, reason=device.unfinished)
        given = None if request.path is None else _absolute(request.path)
        if given is not None:
            refuse_own(context.state_dir, given)
        with self._locked(device, "device retry") as now:
            if not wanted():
                return None
            path = given or context.path(now)
            with self._claims.at(path):
                self._reopen(self._open_checked(now, path, accept=request.accept), path)
            shown = self.show(now.name)  # before another verb changes it
        if shown.state != "ok":
            raise DeviceStillFaulty(name=name, reason=shown.reason)
        return shown

    def gone(self, number: int) -> None:
        """Handle the removal of the disk of this number: its devices are missing."""
        context = self._context
        for device in context.catalog.devices.all():
            file = context.files.get(device.id)
            if file is None or file.identity != (0, number):
                continue
            with self._locked(device, "being taken out"):
                if context.files.get(device.id) is not file:
                    continue
                if device.id not in context.device_trouble:
                    context.device_trouble[device.id] = f"{context.path(device)} is gone"
                    context.events.add("warning", f"device {device.name} is gone: its disk was taken out")
                close_device(context, device.id)

    def came(self, path: Path) -> DeviceView | None:
        """Handle a disk that was added or changed at this path: as `found`, but only for missing devices."""
        return self.found(path, missing_only=True) if self._context.device_trouble else None

    def found(self, path: Path, *, missing_only: bool = False) -> DeviceView | None:
        """Handle a file or disk that appeared at this path: if it is a missing or faulty device, by its label
        or identity, reopen it. None if it is not."""
        context = self._context
        found = inspect(path)
        if found is None:
            return None
        self.shrunk.note()

        def troubles() -> Container[int]:
            return context.device_trouble if missing_only else device_troubles(context)

        in_trouble = troubles()
        devices = [device for device in context.catalog.devices.all() if device.id in in_trouble]
        paths = identities(context, devices)
        for device in devices:
            here = False
            with isolate(context, f"looking whether {path} is device {device.name}", DEVICE=device.name):
                here = (
                    self._claims.may_be(device, found, paths)
                    and self.shrunk.clause(device) is None  # only an administrator may use it again
                    and trouble_with(device, found, context.catalog.uuid) is None
                )
            if here:
                same = paths.get(device.id) == found.identity
                request = DeviceRetry(path=None if same else str(path))
                return self._retry(request, device, lambda: device.id in troubles())  # noqa: B023
        return None

    def _open_checked(self, device: Device, path: Path, *, accept: bool) -> Checked:
        """The device at this path, open and checked; an error unless it is there."""
        context = self._context
        identity = identity_of(path)
        if identity is not None:
            self._claims.refuse_shared(path, identity, but=device.id)
        file = context.files.get(device.id)
        if file is not None and is_alive(file):
            if file.identity == identity:
                return check_again(context, device, file, accept=accept)
            checked = open_checked(context, device, path, accept=accept)
            if not accept:
                checked.file.close()
                raise DeviceNotReady(name=device.name, reason=_copy(device, file, path))
            return checked
        return open_checked(context, device, path, accept=accept)

    def _reopen(self, checked: Checked, path: Path) -> None:
        """Have the engine reopen a device, in this file, and keep the file."""
        context, device, file = self._context, checked.device, checked.file
        try:
            renew_label(context, checked)
            with context.engine_errors(f"opening device {device.name} again"):
                context.reopen_device(device, file)
            self.shrunk.forget(device)
        except BaseException:
            if context.files.get(device.id) is not file:
                file.close()
            raise
        keep(context, device, file)
        context.device_trouble.pop(device.id, None)
        if path != context.path(device):
            context.catalog.devices.set_path(device.id, self._stored_path(path))

    def stop(self) -> None:
        """Begin no more retries, and wait for those under way, for a bounded time."""
        if not self._opening.stop(STOP_S):
            _log.warning("opening missing devices is left behind: it does not end")

    def open_missing(self) -> None:
        """Retry every missing device, and settle incomplete verbs; one that hangs continues in the
        background."""
        self._opening.run("half done", self._incomplete.settle)
        for device in self._context.catalog.devices.all():
            if device.state == "ready" and device.id in self._context.device_trouble:
                self._opening.run(device.id, partial(self._try_again, device))
        self._opening.wait(OPENED_S)

    def _try_again(self, device: Device) -> None:
        # It was reported when it became missing.
        with isolate(self._context, f"opening device {device.name} again", lambda _: None):
            self._retry(DeviceRetry(), device, partial(self._may_come_back, device))

    @contextlib.contextmanager
    def _locked(self, device: Device, what: str) -> Iterator[Device]:
        """Hold a device's lock to do `what`: the device as read under the lock; UnknownDevice if it was
        removed."""
        context = self._context
        with context.holding_device(device, what) as now:
            if now.id in self._incomplete.underway:  # the verb that adds it is about to take its lock
                raise DeviceBusy(name=device.name, what="device add", since="0 s")
            yield now

    def missing(self) -> dict[int, Path]:
        """The paths of the devices that are missing, by id."""
        context = self._context
        if not context.device_trouble:
            return {}
        return {
            device.id: context.path(device)
            for device in context.catalog.devices.all()
            if device.id in context.device_trouble
        }

    def appeared(self, number: int) -> DeviceView | None:
        """Reopen a missing device; None if it is not missing, or was short."""
        context = self._context
        device = context.catalog.devices.get(number)
        if device is None:
            return None
        return self._retry(DeviceRetry(), device, partial(self._may_come_back, device))

    def _may_come_back(self, device: Device) -> bool:
        """Whether a device is missing, and may be used again without an administrator."""
        return device.id in self._context.device_trouble and self.shrunk.clause(device) is None

    @reads
    def list_all(self) -> list[DeviceView]:
        """All devices."""
        context = self._context
        devices = context.catalog.devices.all()
        used = context.catalog.devices.used_bytes()
        users = context.catalog.devices.users()
        volumes = {volume.id: volume.name for volume in context.catalog.volumes.all()}
        stats = {entry["device"]: entry for entry in context.stats()["devices"]}
        troubles = device_troubles(context)
        here = identities(context, [device for device in devices if device.id in context.files])
        views = []
        for device in devices:
            trouble = troubles.get(device.id)
            reason = remark_on(context, device, here) if trouble is None else trouble.reason
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
                    state=_state(device, trouble),
                    reason=UNFINISHED.get(device.state, reason),
                    errors=counts["errors"] if counts else 0,
                    last_errno=counts["last_errno"] if counts else 0,
                    created=iso(device.created_ns),
                )
            )
        return views

    @reads
    def show(self, name: str) -> DeviceView:
        """One device."""
        self._context.find_device(name)
        return next(view for view in self.list_all() if view.name == name)

    def add(self, request: DeviceAdd) -> tuple[DeviceView, bool]:
        """Add a device, or bring back one that was missing (then True)."""
        path = _absolute(request.path)
        if request.name is not None:
            check_name("device", request.name)
        refuse_own(self._context.state_dir, path)
        self._incomplete.settle()
        with self._claims.at(path):
            return self._add_there(request, path)

    def _add_there(self, request: DeviceAdd, path: Path) -> tuple[DeviceView, bool]:
        found = inspect(path)
        known = None if found is None else self._claims.known(found)
        if known is not None:
            with self._locked(known, "device add") as now:
                self._reopen(self._open_checked(now, path, accept=False), path)
            return self.show(known.name), True
        file = None if found is None else occupied.open_free(path)
        try:
            if found is not None and file is not None and file.identity != found.identity:
                raise DeviceUnusable(path=path, why="it was replaced while it was being opened")
            name = self._add(request, path, file)
        except BaseException:
            if file is not None and file not in self._context.files.values():
                file.close()
            raise
        return self.show(name), False

    def _add(self, request: DeviceAdd, path: Path, file: OpenFile | None) -> str:
        """Add an open file or disk, or a file to be made at the path; the device's name."""
        context = self._context
        found = None if file is None else inspect_open(file)
        if found is not None:
            self._claims.known(found)  # again, now that nobody can replace it
        if file is not None and file.kind == "block" and not (request.force or request.adopt):
            contents = occupied.contents_of(file)
            if contents is not None:
                raise DeviceHasContents(path=path, contents=contents)
        try:
            kind, size = plan_device(
                path,
                found,
                size=request.size,
                preallocate=request.preallocate,
                adopt=request.adopt,
                force=request.force,
            )
        except DeviceNotEmpty as error:
            contents = None if file is None else occupied.contents_of_file(file)
            if contents is None:
                raise
            raise DeviceHasContents(path=path, contents=contents) from error
        self._free_name(request.name, path)  # refuse before anything changes
        if request.direct:
            check_direct(path, file, 0 if found is None else found.size)
        if file is not None and request.force and kind == "block" and not request.adopt:
            occupied.clear_signatures(file)
        with context.catalog_lock:
            device = Device(
                0,
                uuid4(),
                self._free_name(request.name, path),
                self._stored_path(path),
                kind,
                request.adopt,
                size,
                kind == "block" or not request.preallocate,
                None,
                "adding",
                self._context.clock(),
                request.direct,
                context.generation,
                (context.run,),
                found.lasting if found is not None and request.adopt else None,
                file is None,
            )
            device = context.catalog.devices.add(device)
            self._incomplete.underway.add(device.id)
        try:
            with context.holding_device(device, "device add", wait_s=context.locks.wait_s):
                self._make(device, path, file, preallocate=request.preallocate)
        finally:
            with context.catalog_lock:
                self._incomplete.underway.discard(device.id)
        return device.name

    def _make(self, device: Device, path: Path, file: OpenFile | None, *, preallocate: bool) -> None:
        """Make the recorded device, or undo the record."""
        context = self._context
        try:
            make(context, device, path, file, preallocate=preallocate)
            context.catalog.devices.set_state(device.id, "ready")
        except BaseException:
            with isolate(context, f"undoing what was added of device {device.name}", DEVICE=device.name):
                self._incomplete.forget(device)
            raise

    def remove(self, name: str) -> None:
        """Remove a device that no volume uses; its file or disk stays, without its label."""
        context = self._context
        with self._locked(context.find_device(name), "device remove") as device:
            with context.catalog_lock:  # from here on nothing is placed on it
                self._refuse_used(device)
                if device.unfinished is None:
                    context.catalog.devices.set_state(device.id, "removing")
            try:
                if device.unfinished is None:
                    with context.engine_errors(f"closing device {name}"):
                        close(context, device.id)
            except BaseException:
                with context.catalog_lock:
                    context.catalog.devices.set_state(device.id, "ready")
                raise
            self._incomplete.forget(device)

    def _refuse_used(self, device: Device) -> None:
        """DeviceInUse if volumes have extents on a device. Under `catalog_lock`."""
        context = self._context
        users = set(context.catalog.devices.users().get(device.id, []))
        if device.made_for is not None:
            users.add(device.made_for)
        if users:
            volumes = {volume.id: volume.name for volume in context.catalog.volumes.all()}
            named = ", ".join(volumes[user] for user in sorted(users) if user in volumes)
            raise DeviceInUse(name=device.name, volumes=named)

    def _free_name(self, wanted: str | None, path: Path) -> str:
        taken = set(self._context.device_names().values())
        if wanted is None:
            return unique_name(name_from(path.name, "device"), taken)
        return check_free("device", wanted, taken)

    def _stored_path(self, path: Path) -> str:
        state_dir = self._context.state_dir
        return str(path.relative_to(state_dir) if path.is_relative_to(state_dir) else path)


def _absolute(path: str) -> Path:
    """The path that a request gives, or BadRequest."""
    if not Path(path).is_absolute() or "\0" in path:
        raise BadRequest(why=f"path {path!r} is not absolute")
    return Path(path)


def _state(
    device: Device, trouble: Trouble | None
) -> Literal["ok", "missing", "faulty", "hung", "adding", "removing"]:
    if device.state != "ready":
        return device.state
    return "ok" if trouble is None else trouble.state


def _copy(device: Device, file: OpenFile, path: Path) -> str:
    """The sentence about a copy of an open device."""
    return (
        f"{path} is a copy of it, and the one that was opened at {file.path} is still there; to continue with"
        f" the copy: `polyvol device retry {device.name} --path {path} --accept`"
    )
