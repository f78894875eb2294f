"""Block devices of this host as the kernel shows them: whose they are, how large, and links to them.

How it works      sysfs is read each time. The kernel's NBD devices say in
                  /sys/block/nbdN/backend what they are: attaching sets it to polyvol/NAME, from which the
                  udev rule 60-polyvol.rules makes the link /dev/polyvol/NAME. A loop device over nbdfuse is
                  identified by its file.
Errors            A device that disappeared in between is treated as one that never existed. Only
                  `written_out` raises then, because its return means that data is safe.
"""

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyudev

from polyvol.daemon.client.attach.errors import AttachedInUse, NotWritten
from polyvol.daemon.client.attach.records import Attached, Places
from polyvol.mapping.occupied import mounts
from polyvol.mapping.os_errors import reason
from polyvol.mapping.programs import NotRun, run_program

SYSFS = Path("/sys/block")
DEV = Path("/dev")
BACKEND_PREFIX = "polyvol/"
NBD_MODULE = Path("/sys/module/nbd")
MODPROBE_S = 30.0
SECTOR_BYTES = 512
UDEV_CONTROL = Path("/run/udev/control")
EVENT_WAIT_S = 0.2
LINK_WAIT_S = 15.0
SYNC_ALL = 7
"""sync_file_range: wait before, write, wait after."""


def read(device: str, attribute: str) -> str | None:
    """An attribute of a block device such as 'nbd0', or None if it has none."""
    try:
        return (SYSFS / device / attribute).read_text().strip()
    except OSError:
        return None


def load_nbd() -> bool:
    """Have the kernel load its NBD client if that is a module; whether the kernel has one."""
    if NBD_MODULE.is_dir():
        return True
    with contextlib.suppress(NotRun):
        run_program(["modprobe", "nbd"], timeout_s=MODPROBE_S)
    return NBD_MODULE.is_dir()


def size_of(device: str) -> int:
    """Its size in bytes; 0 if it does not exist or is not connected."""
    return int(read(device, "size") or 0) * SECTOR_BYTES


def read_only(device: str) -> bool:
    """Whether it can only be read."""
    return read(device, "ro") == "1"


def connected(device: str) -> bool:
    """Whether an NBD device is in use."""
    return (SYSFS / device / "pid").exists()


def attached_nbd() -> dict[str, str]:
    """The NBD devices that are ours, as the kernel knows it: by name, such as 'data': 'nbd0'."""
    found = {}
    for path in sorted(SYSFS.glob("nbd*")):
        backend = read(path.name, "backend") or ""
        if backend.startswith(BACKEND_PREFIX) and connected(path.name):
            found[backend.removeprefix(BACKEND_PREFIX)] = path.name
    return found


def mounted_at(path: Path) -> bool:
    """Whether something is mounted at exactly this path."""
    return any(mount.point == str(path) for mount in mounts())


@contextlib.contextmanager
def written_out(name: str, device: str, *, flush: bool = True) -> Iterator[None]:
    """Within this context all writes to a block device are on its volume, and it cannot be mounted or opened
    exclusively. AttachedInUse if it is; NotWritten if the data could not be written. Without `flush`, for a
    device that does no I/O any more, only the kernel's dirty pages are written, and NotWritten means that
    this, or an earlier write, failed. The kernel reports an earlier failure once."""
    try:
        descriptor = os.open(DEV / device, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL)
    except OSError as error:
        if error.errno == errno.EBUSY:
            use = "in use by a program that holds it exclusively"
            raise AttachedInUse(name=name, device=f"/dev/{device}", use=use) from error
        raise NotWritten(name=name, device=f"/dev/{device}", why=reason(error)) from error
    try:
        try:
            if flush:
                os.fsync(descriptor)
            else:
                _write_pages(descriptor)
        except OSError as error:
            raise NotWritten(name=name, device=f"/dev/{device}", why=reason(error)) from error
        yield
    finally:
        os.close(descriptor)


def _write_pages(descriptor: int) -> None:
    """Have the kernel write its dirty pages of a device; OSError if that fails, or failed before."""
    ask = ctypes.CDLL(None, use_errno=True).sync_file_range
    ask.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    if ask(descriptor, 0, 0, SYNC_ALL) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class UdevWaiter:
    """Waits for events of block devices. Make it before they can happen; use it as a context manager."""

    def __init__(self) -> None:
        self.with_udev = UDEV_CONTROL.exists()
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev" if self.with_udev else "kernel")
        self._monitor.filter_by("block")
        self._monitor.start()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds, checked again at each udev event; False if it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            # An event may end before its effect is visible: so never wait long.
            self._monitor.poll(EVENT_WAIT_S)
        return True

    def link(self, device: str, link: Path, timeout_s: float = LINK_WAIT_S) -> Path:
        """The link to a device that the udev rule makes; without udev it is made here. The device itself if
        no link appears in time (the rule is not installed)."""
        node = DEV / device
        if not self.with_udev:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(node)
        return link if self.wait(lambda: leads_to(link, node), timeout_s) else node

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._monitor


def path_of(places: Places, now: Attached) -> Path:
    """The link to an attached device, or the device itself if it has none."""
    link, node = places.link(now.name), DEV / now.device
    return link if leads_to(link, node) else node


def leads_to(link: Path, node: Path) -> bool:
    """Whether a link leads to this device."""
    return link.is_symlink() and link.resolve() == node.resolve()


def remove_link(link: Path, device: str) -> None:
    """Remove a link that was made without udev, if it is still that of the device."""
    if not UDEV_CONTROL.exists() and leads_to(link, DEV / device):
        with contextlib.suppress(OSError):
            link.unlink()
