"""Devices: the files and disks that hold bytes, and what identifies each.

How it works      A labelled device has its label at offset 0 and its data area from 1 MiB to the last whole
                  block. An adopted one carries no label: its data area is all of it, and its size must not
                  change. `inspect` looks at a path without changing it; the plan for a new device is made
                  from what it found (`plan_device`), then recorded in the catalog, then carried out
                  (`make_device`).
Invariants        D1 nothing with data on it, or with another's label, is written to unless it was adopted; D2
                  after `make_device` the file and its label are durable; D3 `zero_extents` leaves zeros, so
                  that no volume ever reads what a deleted one held.
Errors            DeviceMissing, DeviceUnusable, DeviceNotEmpty, ForeignLabel, LabelDamaged, DeviceIo and
                  others of errors.py. `trouble_with` returns its finding, a clause, since a bad device at
                  start is no error.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from polyvol.mapping import fallocate, label
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
    UnalignedSize,
    ZeroSize,
)
from polyvol.mapping.extent import BLOCK_SIZE, Extent
from polyvol.mapping.label import DATA_OFFSET, LABEL_SIZE, BadLabel, Label, NoLabel
from polyvol.mapping.partition import round_up

Kind = Literal["file", "block"]
DeviceState = Literal["adding", "ready", "removing"]

DEVICE_SIZE_MAX = 1 << 60
"""Bytes: beyond every disk, and well within the catalog's and the kernel's integers."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the catalog knows it. `path` is relative to the state directory if it lies within.
    `direct`: its blocks go past the page cache."""

    id: int
    uuid: UUID
    name: str
    path: str
    kind: Kind
    adopted: bool
    size: int
    sparse: bool
    made_for: int | None
    state: DeviceState
    created_ns: int
    direct: bool = False

    @property
    def data_area(self) -> Extent:
        """Where extents may lie; all offsets in it are the device's own."""
        return data_area(self.id, self.size, adopted=self.adopted)


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: its kind and size, what the system knows it by, its label or what is wrong with it,
    and whether there is data on it (for a block device: in its first MiB)."""

    kind: Kind
    size: int
    identity: tuple[int, int]
    label: Label | BadLabel | None
    has_data: bool


def data_area(device: int, size: int, *, adopted: bool) -> Extent:
    """The data area of a device of this size."""
    start = 0 if adopted else DATA_OFFSET
    return Extent(device, start, size // BLOCK_SIZE * BLOCK_SIZE - start)


def inspect(path: Path) -> Found | None:
    """What is at the path, or None if nothing is. Changes nothing."""
    try:
        with _Open(path, os.O_RDONLY) as fd:
            return _inspect_open(path, fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceUnusable(path=path, why=_reason(error)) from error


def identity_of(path: Path) -> tuple[int, int] | None:
    """What the system knows the file or disk at this path by, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _identity(status)


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
            raise DeviceUnaligned(path=path, size=found.size, above=round_up(found.size, BLOCK_SIZE))
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
            path=path, why=f"a size of {size} bytes is more than the {DEVICE_SIZE_MAX} possible"
        )
    if aligned and size % BLOCK_SIZE:
        raise UnalignedSize(what=f"device {path}", size=size, above=round_up(size, BLOCK_SIZE))
    if size < DATA_OFFSET + BLOCK_SIZE:
        raise DeviceTooSmall(what="a device", needed=DATA_OFFSET + BLOCK_SIZE, devices=path, free=size)
    return size


def make_device(device: Device, path: Path, catalog: UUID, *, preallocate: bool) -> None:
    """Carry out what was planned: make or extend the file, write the label, sync. Repeatable."""
    if device.adopted:
        return
    text = label.pack(Label(device.uuid, catalog, device.size, device.created_ns))
    flags = os.O_RDWR | (os.O_CREAT if device.kind == "file" else 0)
    try:
        with _Open(path, flags) as fd:
            if device.kind == "file":
                if os.fstat(fd).st_size < device.size:
                    os.ftruncate(fd, device.size)
                if preallocate:
                    os.posix_fallocate(fd, 0, device.size)
            _write_all(fd, text, 0)
            os.fsync(fd)
        sync_directory(path.parent)
    except OSError as error:
        raise DeviceIo(what="making", path=path, why=_reason(error)) from error


def clear_label(device: Device, path: Path, catalog: UUID) -> None:
    """Take the label off, if it is this device's own; what else is there, or missing, is left alone."""
    if device.adopted:
        return
    try:
        found = inspect(path)
    except DeviceUnusable:
        return
    if found is None or not _is_own(found.label, device, catalog):
        return
    zero_extents(device, path, [Extent(device.id, 0, LABEL_SIZE)])


def trouble_with(device: Device, path: Path, catalog: UUID) -> str | None:
    """Why the device at this path cannot be used for what the catalog says, as a clause; None if it can."""
    try:
        found = inspect(path)
    except DeviceUnusable as error:
        return error.message
    if found is None:
        return f"{path} does not exist"
    if found.kind != device.kind:
        return f"{path} is a {found.kind} and was a {device.kind}"
    if device.adopted:
        if found.size != device.size:
            return f"{path} is {found.size} bytes and was {device.size} when it was adopted"
        return None
    if found.label is None:
        return f"{path} carries no label"
    if isinstance(found.label, BadLabel):
        return f"the label on {path} is damaged: {found.label}"
    if not _is_own(found.label, device, catalog):
        return f"{path} carries the label of another device ({found.label.device})"
    if found.size < device.size:
        return f"{path} is {found.size} bytes and was {device.size}"
    return None


def length_if_short(device: Device, path: Path, catalog: UUID) -> int | None:
    """How long the file or disk at this path is, if it is this device as far as can be told, and shorter than
    it must be; else None. A disk of no length is one that is gone."""
    try:
        found = inspect(path)
    except DeviceUnusable:
        return None
    if found is None or found.kind != device.kind or (found.kind == "block" and not found.size):
        return None
    if not device.adopted and not _is_own(found.label, device, catalog):
        return None
    return found.size if found.size < device.size else None


def short_clause(found: int, needed: int) -> str:
    """What is to be said of a device that was found short."""
    return (
        f"it was found {found} bytes long and must have {needed}: what lay beyond is lost, and it is not"
        " written to until `polyvol device retry`"
    )


def zero_extents(device: Device, path: Path, extents: Iterable[Extent]) -> None:
    """Make these extents read as zeros, giving their space back if the device is sparse; synced (D3)."""
    try:
        with _Open(path, os.O_RDWR) as fd:
            for extent in extents:
                fallocate.zero(fd, extent.offset, extent.length, punch=device.sparse)
            os.fsync(fd)
    except OSError as error:
        raise DeviceIo(what="clearing", path=path, why=_reason(error)) from error


def remove_file(path: Path) -> None:
    """Remove a file that was made for a volume; one that is gone already is fine. Durable."""
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DeviceIo(what="removing", path=path, why=_reason(error)) from error


class _Open:
    """A file descriptor for the length of a `with`."""

    def __init__(self, path: Path, flags: int) -> None:
        self._arguments = (path, flags)

    def __enter__(self) -> int:
        path, flags = self._arguments
        # O_NONBLOCK: a FIFO in the place of a file must not hold us up; it is refused after fstat.
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _inspect_open(path: Path, fd: int) -> Found:
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        kind: Kind = "file"
        size = status.st_size
        has_data = _has_data(fd, size)
    elif stat.S_ISBLK(status.st_mode):
        kind = "block"
        size = os.lseek(fd, 0, os.SEEK_END)
        has_data = any(_read_up_to(fd, DATA_OFFSET))
    else:
        raise DeviceUnusable(path=path, why="it is neither a regular file nor a block device")
    text = _read_up_to(fd, LABEL_SIZE)
    found: Label | BadLabel | None
    try:
        found = label.unpack(text)
    except NoLabel:
        found = None
    except BadLabel as bad:
        found = bad
    return Found(kind, size, _identity(status), found, has_data)


def _has_data(fd: int, size: int) -> bool:
    """Whether a file has anything but holes."""
    try:
        return size > 0 and os.lseek(fd, 0, os.SEEK_DATA) < size
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False  # nothing but a hole to the end
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    if stat.S_ISBLK(status.st_mode):
        return (0, status.st_rdev)
    return (status.st_dev, status.st_ino)


def _refuse_label(path: Path, found: Found) -> None:
    if isinstance(found.label, BadLabel):
        raise LabelDamaged(path=path, why=found.label)
    if found.label is not None:
        owner = f"device {found.label.device} of the polyvol catalog {found.label.catalog}"
        raise ForeignLabel(path=path, owner=owner)


def _is_own(found: Label | BadLabel | None, device: Device, catalog: UUID) -> bool:
    return isinstance(found, Label) and found.device == device.uuid and found.catalog == catalog


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


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive power loss: those that have come, and those that are gone."""
    with _Open(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
