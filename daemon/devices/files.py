"""The open files of devices: one descriptor for each, from its first use until it is closed.

How it works      `open_checked` opens what is at a path, holds it, and checks that it is the device.
                  `context.files` has the result, by device id. Python accesses a device only through that
                  descriptor; the engine opens the same file or disk through it again, so that a device can be
                  reopened after an error while it stays held. A different file at the device's path has no
                  effect (`remark_on` reports it). `begin_run` and `end_run` write
                  the labels of a generation (mapping/catalog/generations.py), several at a time.
Owner and locks   `context.files` is changed under the device's lock, by replacing single entries. Everything
                  here except `remark_on` may wait for a device without limit.
Durability        After `begin_run` and `make` the labels are durable.
Errors            DeviceNotReady with what is wrong with a device; mapping/errors.py.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.daemon.workers import answers
from polyvol.mapping import occupied
from polyvol.mapping.device import Found, inspect_open, is_blank, make_device, trouble_with, write_label
from polyvol.mapping.errors import DeviceIo, DeviceNotReady, DeviceUnusable, PolyvolError, kind_of
from polyvol.mapping.label import NO_RUN, Label
from polyvol.mapping.opening import (
    HeldByOther,
    Identity,
    OpenFile,
    create_file,
    identity_of,
    remove_name,
    take_over,
)
from polyvol.mapping.records.devices import Device
from polyvol.mapping.sizes import exact_size

CLOSED_S = 5.0
"""How long a device that no volume uses may be in use in the engine."""
LABEL_PATIENCE_S = 5.0
"""How long labels are waited for when none was written; one that is written later is right as well."""
_log = logging.getLogger("polyvol")


@dataclass(frozen=True, slots=True)
class Checked:
    """A device that was opened and checked: it is the one that the catalog says."""

    device: Device
    file: OpenFile
    found: Found


def open_checked(
    context: Context,
    device: Device,
    path: Path,
    *,
    accept: bool = False,
    until: float = 0.0,
    users: Mapping[Identity, str] | None = None,
    passed: int | None = None,
) -> Checked:
    """Open and hold what is at a path, if it is the device; else DeviceNotReady. `accept` as in
    `trouble_with`; `until` and `users` as in `open_free`; `passed`: a descriptor that the process before has
    held."""
    if passed is not None:
        with contextlib.suppress(PolyvolError, OSError, HeldByOther):
            return _check_opened(context, device, take_over(passed, path), accept=accept)
    try:
        file = occupied.open_free(path, until=until, users=users)
    except FileNotFoundError as error:
        raise DeviceNotReady(name=device.name, reason=f"{path} does not exist") from error
    except PolyvolError as error:
        raise DeviceNotReady(name=device.name, reason=error.message) from error
    return _check_opened(context, device, file, accept=accept)


def check_again(context: Context, device: Device, file: OpenFile, *, accept: bool = False) -> Checked:
    """Check the open file of a device; DeviceNotReady if it is no longer the device."""
    try:
        found = inspect_open(file)
    except PolyvolError as error:
        raise DeviceNotReady(name=device.name, reason=error.message) from error
    elsewhere = found.path != context.path(device)
    reason = trouble_with(device, found, context.catalog.uuid, accept=accept, elsewhere=elsewhere)
    if reason is not None:
        raise DeviceNotReady(name=device.name, reason=reason)
    return Checked(device, file, found)


def _check_opened(context: Context, device: Device, file: OpenFile, *, accept: bool) -> Checked:
    try:
        return check_again(context, device, file, accept=accept)
    except BaseException:
        file.close()
        raise


def file_of(context: Context, device: Device) -> OpenFile:
    """The open file of a device that is in use; else DeviceNotReady."""
    file = context.files.get(device.id)
    if file is None:
        reason = context.device_trouble.get(device.id, "it is not open")
        raise DeviceNotReady(name=device.name, reason=reason)
    return file


def is_alive(file: OpenFile) -> bool:
    """Whether a file or disk still exists: a disk that was unplugged has length 0."""
    try:
        return file.kind == "file" or os.lseek(file.fd, 0, os.SEEK_END) > 0
    except OSError:
        return False


def keep(context: Context, device: Device, file: OpenFile) -> None:
    """Use this file for a device from now on; close its previous one."""
    if not file.held:
        why = "because its file system has no locks"
        text = f"device {device.name}: nothing keeps others from {file.path}, {why}"
        context.events.add("warning", text, DEVICE=device.name)
    before = context.files.get(device.id)
    context.files[device.id] = file
    if before is not None and before is not file:
        before.close()


def close_device(context: Context, device: int) -> None:
    """Close a device's file, if it has one: other programs may then open it."""
    file = context.files.pop(device, None)
    if file is not None:
        with contextlib.suppress(OSError):  # of earlier writes, which a sync has reported already
            file.close()


def close_all(context: Context) -> None:
    """Close the files of all devices."""
    for device in list(context.files):
        close_device(context, device)


def identities(context: Context, devices: Iterable[Device]) -> dict[int, Identity | None]:
    """The identities of the files at the paths of devices now, by device id; without those that do not
    answer."""
    paths = {device.id: context.path(device) for device in devices}
    questions = {("path", identity, path): partial(identity_of, path) for identity, path in paths.items()}
    return {key[1]: found for key, found in context.probes.ask(questions).items()}


def remark_on(context: Context, device: Device, here: Mapping[int, Identity | None]) -> str | None:
    """The remark about a device that is in use, as a clause, or None: it has grown, or its path is no longer
    that of its file. `here`: from `identities`."""
    file = context.files.get(device.id)
    if file is None:
        return None
    path = context.path(device)
    if device.id not in here:
        return f"its path {path} does not answer; the file or disk that was opened there is used"
    identity = here[device.id]
    if identity != file.identity:
        what = "nothing is at its path any more" if identity is None else "its path shows another file now"
        return f"{what}; what was opened there is used until polyvold stops: put it back before"
    if file.size > device.size:
        return (
            f"it has grown to {exact_size(file.size)}, of which the first {exact_size(device.size)} are used"
        )
    return None


def make(
    context: Context, device: Device, path: Path, file: OpenFile | None = None, *, preallocate: bool = False
) -> None:
    """Make the planned device in this file or in a new one, and open it in the engine. On an error a new file
    is removed."""
    made = file is None
    try:
        file = file or create_file(path)
    except FileExistsError as error:
        raise DeviceUnusable(path=path, why="something else appeared there") from error
    except OSError as error:
        raise DeviceIo(what="making", path=path, why=error) from error
    try:
        if device.runs != (context.run,):
            context.catalog.generations.written([device.id], context.generation, context.run)
        device = replace(device, generation=context.generation, runs=(context.run,))
        make_device(device, file, context.catalog.uuid, context.run, preallocate=preallocate)
        with context.engine_errors(f"opening device {device.name}"):
            context.open_device(device, file)
    except BaseException:
        if made:
            with contextlib.suppress(OSError, PolyvolError):
                remove_name(path, file.identity)
        file.close()
        raise
    keep(context, device, file)


def close(context: Context, device: int) -> None:
    """Close a device in the engine that no volume uses. Calls in progress on it, such as a check of its
    length, are awaited."""
    until = time.monotonic() + CLOSED_S
    while True:
        try:
            return context.engine.close_device(device)
        except context.engine_error as error:
            if kind_of(error) != "busy" or time.monotonic() >= until:
                raise
        time.sleep(0.01)


def unmake(context: Context, device: Device) -> None:
    """Close a file that was made for a volume, and remove it; another file at its path stays. Repeatable.
    DeviceNotReady if that is impossible now."""
    with contextlib.suppress(context.engine_error):  # it may not be open
        close(context, device.id)
    path = context.path(device)
    try:
        file = context.files.get(device.id) or occupied.open_free(path)
    except FileNotFoundError:
        return
    try:
        if device.id not in context.files and not _is_leftover(context, device, file):
            _log.warning("%s is not the file of device %s: it stays", path, device.name)
        elif not remove_name(path, file.identity):
            _log.warning("%s is not the file of device %s any more: it stays", path, device.name)
    except OSError as error:
        raise DeviceIo(what="removing", path=path, why=error) from error
    finally:
        if device.id not in context.files:
            file.close()
    close_device(context, device.id)


def _is_leftover(context: Context, device: Device, file: OpenFile) -> bool:
    """Whether a file is one that was made for this device, perhaps not to the end."""
    found = inspect_open(file)
    shorter = replace(device, size=min(device.size, found.size))  # it may have become short
    if trouble_with(shorter, found, context.catalog.uuid) is None:
        return True
    # If a file system does not distinguish preallocated bytes from written ones, they are zeros.
    allocated = found.size == device.size and is_blank(file)
    return found.label is None and (not found.has_data or allocated)


def begin_run(context: Context, devices: Iterable[Checked]) -> None:
    """Begin a generation, and write it into the labels of these devices, the only ones in use. A device whose
    label cannot be written is used anyway, because it may still be readable."""
    checked_devices = list(devices)
    run = uuid4()
    identities = {
        checked.device.id: checked.found.lasting
        for checked in checked_devices
        if checked.device.adopted and checked.device.identity is None and checked.found.lasting is not None
    }
    carried = {checked.device.id: _run_of(checked) for checked in checked_devices}
    # Before any label has it.
    context.generation = context.catalog.generations.begin(run, carried, identities)
    context.run = run
    if checked_devices:
        labels = {one.device.id: partial(_write_label, context, one) for one in checked_devices}
        done = answers(labels, LABEL_PATIENCE_S, "polyvol-label")
        written = [number for number, well in done.items() if well]
        context.catalog.generations.written(written, context.generation, run)


def _run_of(checked: Checked) -> UUID:
    """The run in a device's label; NO_RUN if it has no label."""
    label = checked.found.label_of(checked.device)
    return label.run if isinstance(label, Label) else NO_RUN


def _write_label(context: Context, checked: Checked) -> bool:
    """Write the present generation into a label; whether that succeeded. A failure is reported."""
    device = checked.device

    def failed(reason: str) -> None:
        rest = "an older copy of it, or of the state directory, would not be told from this one"
        context.events.add("warning", f"device {device.name}: {reason}; {rest}", DEVICE=device.name)

    with isolate(context, f"writing the label of device {device.name}", failed):
        return write_label(device, checked.file, context.catalog.uuid, context.generation, context.run)
    return False


def end_run(context: Context) -> None:
    """Begin one more generation at a clean stop: a copy of the state directory from before it is older."""
    checked_devices = []
    for device in context.catalog.devices.all():
        file = context.files.get(device.id)
        if file is not None and device.state == "ready":
            with isolate(context, f"looking at device {device.name} again", lambda _: None):
                checked_devices.append(check_again(context, device, file))
    begin_run(context, checked_devices)


def renew_label(context: Context, checked: Checked) -> None:
    """Write the present generation into the label of a device that comes into use while polyvold runs."""
    device, label, before = checked.device, checked.found.label_of(checked.device), _run_of(checked)
    generations = context.catalog.generations
    if before == context.run and device.runs == (context.run,):
        return
    generation = label.generation if isinstance(label, Label) else 0
    identity = (checked.found.lasting or device.identity) if device.adopted else None
    with context.catalog_lock:
        context.generation = generations.accept(device.id, generation, identity)
    generations.expect(device.id, before, context.run)
    if _write_label(context, checked):
        generations.written([device.id], context.generation, context.run)
