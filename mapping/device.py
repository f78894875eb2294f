"""Devices: the files and disks that hold bytes, and what identifies each.

How it works      A labelled device has its label at offset 0 and its data area from 1 MiB to the last whole
                  block. An adopted one has its data area from offset 0, its size must not change, and the
                  catalog has its identity (identity.py). A file that is adopted has its label in an
                  extended attribute, where the file system has these; a disk has none. `inspect` examines a
                  path without changing it, `inspect_open` an open file or disk; the plan for a new device is
                  made from the result (`plan_device`), then recorded in the catalog, then executed
                  (`make_device`). All I/O on a device uses one descriptor (opening.py).
Invariants        MD1 a file or disk with data, or with a foreign label, is not written to unless it was
                  adopted; MD2 after `make_device` the file and its label are durable; MD3 `zero_extents`
                  leaves zeros, so that no volume ever reads data of a deleted one; MD4 a device is used only
                  if its label has a run that the catalog expects: otherwise the device or the catalog is an
                  older copy.
Errors            DeviceMissing, DeviceUnusable, DeviceNotEmpty, ForeignLabel, LabelDamaged, DeviceIo and
                  others of errors.py. `trouble_with` returns a clause, because a bad device at a start is not
                  an error.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from polyvol.mapping import fallocate, label, occupied, os_errors
from polyvol.mapping.errors import (
    DeviceIo,
    DeviceMissing,
    DeviceNotEmpty,
    DeviceSizeGiven,
    DeviceTooSmall,
    DeviceUnaligned,
    DeviceUnusable,
    ForeignLabel,
    LabelDamaged,
    PolyvolError,
    UnalignedSize,
    ZeroSize,
)
from polyvol.mapping.extent import BLOCK_SIZE, Extent
from polyvol.mapping.identity import lasting_identity
from polyvol.mapping.label import DATA_OFFSET, LABEL_SIZE_1, BadLabel, Label, NoLabel
from polyvol.mapping.opening import Identity, Kind, OpenFile, open_file
from polyvol.mapping.partition import round_up
from polyvol.mapping.records.devices import DEVICE_SIZE_MAX, Device
from polyvol.mapping.sizes import argument_size, exact_size

ASIDE = "user.polyvol.label"
"""The extended attribute with the label of an adopted file."""
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.E2BIG)


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: its kind and size, what the running system knows it by, and what it is known by for
    good; its label or what is wrong with it, and whether there is data on it (for a block device: in its
    first MiB). `aside`: the label that it has as an adopted file."""

    path: Path
    kind: Kind
    size: int
    identity: Identity
    lasting: str | None
    label: Label | BadLabel | None
    has_data: bool
    aside: Label | BadLabel | None = None

    def label_of(self, device: Device) -> Label | BadLabel | None:
        """The label, where this device has it."""
        return self.aside if device.adopted else self.label


def inspect(path: Path) -> Found | None:
    """What is at the path, or None if nothing is. Changes nothing."""
    try:
        with open_file(path, write=False, hold=False) as file:
            return inspect_open(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceUnusable(path=path, why=_reason(error)) from error


def inspect_open(file: OpenFile) -> Found:
    """What an open file or disk is. Nothing is changed on it."""
    try:
        if file.kind == "file":
            size = os.fstat(file.fd).st_size
            has_data = _has_data(file.fd, size)
        else:
            size = os.lseek(file.fd, 0, os.SEEK_END)
            has_data = any(_read_up_to(file.fd, DATA_OFFSET))
        found = _unpacked(_read_up_to(file.fd, LABEL_SIZE_1))
        aside = _unpacked(_read_aside(file.fd)) if file.kind == "file" else None
    except OSError as error:
        raise DeviceUnusable(path=file.path, why=_reason(error)) from error
    file.size = size
    return Found(file.path, file.kind, size, file.identity, lasting_identity(file), found, has_data, aside)


def plan_device(
    path: Path, found: Found | None, *, size: int | None, preallocate: bool, adopt: bool, force: bool = False
) -> tuple[Kind, int]:
    """The kind and size that a device at this path would have, or the error that says why there is none.
    `force`: whatever is on it."""
    if found is None:
        if adopt or size is None:
            raise DeviceMissing(path=path)
        return "file", check_device_size(path, size)
    if not force:
        _refuse_label(path, found)
    if adopt:
        if size is not None or preallocate:
            raise DeviceSizeGiven(path=path, size=found.size)
        if found.size == 0:
            raise ZeroSize(what=path, size=0, smallest=BLOCK_SIZE)
        if found.size % BLOCK_SIZE:
            raise DeviceUnaligned(
                path=path, size=found.size, above=argument_size(round_up(found.size, BLOCK_SIZE))
            )
        return found.kind, found.size
    if found.has_data and not force:
        raise DeviceNotEmpty(path=path)
    if found.kind == "file" and found.size == 0 and size is not None:
        return "file", check_device_size(path, size)
    if size is not None and size != found.size:
        raise DeviceSizeGiven(path=path, size=found.size)
    return found.kind, check_device_size(path, found.size, aligned=False)


def check_device_size(path: Path, size: int, *, aligned: bool = True) -> int:
    """The size, if a labelled device may have it: room for at least one block after the label area."""
    if size <= 0:
        raise ZeroSize(what=f"device {path}", size=size, smallest=DATA_OFFSET + BLOCK_SIZE)
    if size > DEVICE_SIZE_MAX:
        raise DeviceUnusable(
            path=path,
            why=f"{exact_size(size)} is more than the {exact_size(DEVICE_SIZE_MAX)} that are possible",
        )
    if aligned and size % BLOCK_SIZE:
        raise UnalignedSize(what=f"device {path}", size=size, above=argument_size(round_up(size, BLOCK_SIZE)))
    if size < DATA_OFFSET + BLOCK_SIZE:
        raise DeviceTooSmall(what="a device", needed=DATA_OFFSET + BLOCK_SIZE, devices=path, free=size)
    return size


def make_device(device: Device, file: OpenFile, catalog: UUID, run: UUID, *, preallocate: bool) -> None:
    """Carry out what was planned: extend the file, write the label of this run, sync. Repeatable."""
    if device.adopted:
        write_label(device, file, catalog, device.generation, run)
        return
    try:
        if device.kind == "file":
            if os.fstat(file.fd).st_size < device.size:
                os.ftruncate(file.fd, device.size)
            if preallocate:
                os.posix_fallocate(file.fd, 0, device.size)
        # The rest of a longer label of version 1 goes; what replaces a label later is one sector (label.py).
        # A file that has none stays one without data, until it has its label.
        if any(_read_up_to(file.fd, LABEL_SIZE_1)):
            os.pwrite(file.fd, bytes(LABEL_SIZE_1), 0)
    except OSError as error:
        raise DeviceIo(what="making", path=file.path, why=error) from error
    write_label(device, file, catalog, device.generation, run)


def write_label(device: Device, file: OpenFile, catalog: UUID, generation: int, run: UUID) -> bool:
    """Write a device's label, and sync it; False if it is adopted and can have none."""
    text = label.pack(
        Label(device.uuid, catalog, device.size, device.created_ns, generation=generation, run=run)
    )
    try:
        if device.adopted and not (device.kind == "file" and _write_aside(file.fd, text)):
            return False
        if not device.adopted:
            _write_all(file.fd, text, 0)
        os.fsync(file.fd)
    except OSError as error:
        raise DeviceIo(what="writing the label of", path=file.path, why=error) from error
    return True


def clear_label(device: Device, file: OpenFile, catalog: UUID) -> None:
    """Take the label off, if it is this device's own; another's is left alone."""
    if not is_own(inspect_open(file).label_of(device), device, catalog):
        return
    if device.adopted:
        os.removexattr(file.fd, ASIDE)
        return
    zero_extents(device, file, [Extent(device.id, 0, LABEL_SIZE_1)])


def trouble_with(
    device: Device, found: Found, catalog: UUID, *, accept: bool = False, elsewhere: bool = False
) -> str | None:
    """Why what was found cannot be used for what the catalog says, as a clause; None if it can. `accept`: it
    may be an older copy, or the catalog may be; if it is adopted, it may be a copy. `elsewhere`: it is not at
    the path that the catalog has, so the advice names its path."""
    path = found.path
    at = f" --path {path}" if elsewhere else ""
    command = f"`polyvol device retry {device.name}{at} --accept`"
    if found.kind != device.kind:
        return f"{path} is a {found.kind} and was a {device.kind}"
    if device.adopted:
        sizes = f"{path} has {exact_size(found.size)}, and had {exact_size(device.size)} when it was adopted"
        if found.size < device.size:
            return sizes
        if found.size > device.size and not accept and not _is_adopted_one(device, found):
            return f"{sizes}, and nothing tells whether it has grown or is another one; to use it: {command}"
        return None if accept else _not_adopted(device, found, catalog, command)
    if found.label is None:
        return f"{path} carries no label"
    if isinstance(found.label, BadLabel):
        return f"the label on {path} is damaged: {found.label}"
    if not is_own(found.label, device, catalog):
        return f"{path} carries the label of another device ({found.label.device})"
    if found.size < device.size:
        return f"{path} has {exact_size(found.size)}, and had {exact_size(device.size)}"
    if found.label.run in device.runs or accept:
        return None
    return _other_time(device, path, found.label, command)


def length_if_short(device: Device, path: Path, catalog: UUID) -> int | None:
    """How long the file or disk at this path is, if it is this device as far as is known, and shorter than
    it must be; else None. A disk of no length is one that is gone."""
    try:
        found = inspect(path)
    except DeviceUnusable:
        return None
    if found is None or found.kind != device.kind or (found.kind == "block" and not found.size):
        return None
    if not device.adopted and not is_own(found.label, device, catalog):
        return None
    return found.size if found.size < device.size else None


def short_clause(found: int, needed: int) -> str:
    """What is to be said of a device that was found short."""
    return (
        f"it was found with {exact_size(found)} and must have {exact_size(needed)}: what lay beyond is lost,"
        " and it is not written to until `polyvol device retry`"
    )


def _is_adopted_one(device: Device, found: Found) -> bool:
    """Whether something tells that what was found is the device that was adopted, whatever its length is."""
    known = isinstance(found.aside, Label) and found.aside.run in device.runs
    return known or (device.identity is not None and device.identity == found.lasting)


def _not_adopted(device: Device, found: Found, catalog: UUID, command: str) -> str | None:
    """Why what was found is not the device that was adopted, or not as it was left, as a clause, or None."""
    path, aside = found.path, found.aside
    anyway = f"to use it all the same: {command}"
    if len({device.identity, found.lasting} - {None}) == 2:
        return f"{path} is not the {device.kind} that was adopted, but a copy of it or another one; {anyway}"
    if isinstance(aside, BadLabel):
        return f"the label in an attribute of {path} is damaged: {aside}; {anyway}"
    if aside is None or aside.run in device.runs:
        return None
    if is_own(aside, device, catalog):
        return _other_time(device, path, aside, command)
    return f"{path} has since been adopted by another polyvol (device {aside.device}); {anyway}"


def trouble_at(device: Device, path: Path, catalog: UUID) -> str | None:
    """Why the device at this path cannot be used for what the catalog says, as a clause; None if it can.
    Nobody in this process has it open."""
    try:
        with open_file(path, write=False, hold=False) as file:
            use = occupied.in_use_by_open(file)
            if use is not None:
                return f"{path} is {use}"
            return trouble_with(device, inspect_open(file), catalog)
    except FileNotFoundError:
        return f"{path} does not exist"
    except OSError as error:
        return f"{path} cannot be opened: {_reason(error)}"
    except PolyvolError as error:
        return error.message


def _other_time(device: Device, path: Path, found: Label, command: str) -> str:
    """What is said of a label of a run that the catalog does not expect (MD4); `command` uses it anyway."""
    if found.generation < device.generation:
        return (
            f"{path} is an older copy of the device: its label is of generation {found.generation}, and"
            f" generation {device.generation} was written to it; bring the newer one back, or, to use what is"
            f" on this one: {command}"
        )
    return (
        f"{path} was last used with another copy of this state directory (generation {found.generation}; this"
        f" one has written {device.generation}), so this one is older: start polyvold on the newer one, or,"
        f" if it is lost: {command}"
    )


def zero_extents(device: Device, file: OpenFile, extents: Iterable[Extent]) -> None:
    """Make these extents read as zeros, giving their space back if the device is sparse; synced (MD3)."""
    try:
        for extent in extents:
            fallocate.zero(file.fd, extent.offset, extent.length, punch=device.sparse)
        os.fsync(file.fd)
    except OSError as error:
        raise DeviceIo(what="clearing", path=file.path, why=error) from error


def is_own(found: Label | BadLabel | None, device: Device, catalog: UUID) -> bool:
    """Whether this is the device's label."""
    return isinstance(found, Label) and found.device == device.uuid and found.catalog == catalog


def is_blank(file: OpenFile) -> bool:
    """Whether the label area of an open file is zeros."""
    return not any(_read_up_to(file.fd, DATA_OFFSET))


def _has_data(fd: int, size: int) -> bool:
    """Whether a file has anything but holes."""
    try:
        return size > 0 and os.lseek(fd, 0, os.SEEK_DATA) < size
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False  # nothing but a hole to the end
        raise


def _refuse_label(path: Path, found: Found) -> None:
    if isinstance(found.label, BadLabel):
        raise LabelDamaged(path=path, why=found.label)
    if found.label is not None:
        owner = f"device {found.label.device} of the polyvol catalog {found.label.catalog}"
        raise ForeignLabel(path=path, owner=owner)


def _unpacked(text: bytes) -> Label | BadLabel | None:
    try:
        return label.unpack(text)
    except NoLabel:
        return None
    except BadLabel as bad:
        return bad


def _read_aside(fd: int) -> bytes:
    """The label of an adopted file; b"" if it has none, or its file system has no such attributes."""
    try:
        return os.getxattr(fd, ASIDE)
    except OSError as error:
        if error.errno in (errno.ENODATA, *_NO_ATTRIBUTES):
            return b""
        raise


def _write_aside(fd: int, text: bytes) -> bool:
    """Write the label of an adopted file; whether its file system has room for it."""
    try:
        os.setxattr(fd, ASIDE, text)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return False
        raise
    return True


def _read_up_to(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.pread(fd, length - len(data), len(data))
        if not piece:
            break
        data += piece
    return data


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def _reason(error: OSError) -> str:
    return os_errors.reason(error)
