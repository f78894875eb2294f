"""Block devices of this host as the kernel shows them: whose they are, how large, who uses them.

How it works      sysfs and /proc/self/mountinfo are read each time. The kernel's NBD devices say in
                  /sys/block/nbdN/backend what they are: we have it say polyvol/NAME, from which the udev rule
                  60-polyvol.rules makes the link /dev/polyvol/NAME. A loop device over nbdfuse is known by
                  its file.
Errors            Nothing raises where a device has gone in the meantime: it is then as if it had never been.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyudev

SYSFS = Path("/sys/block")
DEV = Path("/dev")
BACKEND_PREFIX = "polyvol/"
SECTOR_BYTES = 512
UDEV_CONTROL = Path("/run/udev/control")
EVENT_WAIT_S = 0.2
LINK_WAIT_S = 3.0
_OCTAL = re.compile(r"\\([0-7]{3})")


def read(device: str, attribute: str) -> str | None:
    """An attribute of a block device such as 'nbd0', or None if it has none."""
    try:
        return (SYSFS / device / attribute).read_text().strip()
    except OSError:
        return None


def size_of(device: str) -> int:
    """Its size in bytes; 0 if it is not there or not connected."""
    return int(read(device, "size") or 0) * SECTOR_BYTES


def read_only(device: str) -> bool:
    """Whether it can only be read."""
    return read(device, "ro") == "1"


def connected(device: str) -> bool:
    """Whether an NBD device is in use by anybody."""
    return (SYSFS / device / "pid").exists()


def attached_nbd() -> dict[str, str]:
    """The NBD devices that are ours, as the kernel knows it: by name, such as 'data': 'nbd0'."""
    found = {}
    for path in sorted(SYSFS.glob("nbd*")):
        backend = read(path.name, "backend") or ""
        if backend.startswith(BACKEND_PREFIX) and connected(path.name):
            found[backend.removeprefix(BACKEND_PREFIX)] = path.name
    return found


def loop_of(file: Path) -> str | None:
    """The loop device over this file, such as 'loop0'."""
    for path in sorted(SYSFS.glob("loop*")):
        if read(path.name, "loop/backing_file") == str(file):
            return path.name
    return None


def mounted_at(path: Path) -> bool:
    """Whether something is mounted at exactly this path."""
    return any(mount.point == str(path) for mount in _mounts())


def use_of(device: str) -> str | None:
    """Who uses a block device or a part of it, as a clause; None if nobody does."""
    numbers = {}
    for path in (SYSFS / device, *(SYSFS / device).glob(f"{device}*")):
        with contextlib.suppress(OSError):
            numbers[(path / "dev").read_text().strip()] = path
    for mount in _mounts():
        if mount.device in numbers:
            return f"mounted at {mount.point}"
    for path in numbers.values():
        with contextlib.suppress(OSError):
            for holder in sorted((path / "holders").iterdir()):
                return f"part of {holder.name}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            if Path(line.split()[0]).name in {path.name for path in numbers.values()}:
                return "used as swap"
    return None


def sync(device: str, *, exclusively: bool) -> bool:
    """Have everything written to a block device; False if it is in use and `exclusively` was wanted."""
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_EXCL if exclusively else 0)
    try:
        descriptor = os.open(DEV / device, flags)
    except OSError:
        return False
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # a device without a connection: there is nothing to be had from it
    finally:
        os.close(descriptor)
    return True


class Arrival:
    """Waits for what block devices do. Made before it is to happen; use it as a context manager."""

    def __init__(self) -> None:
        self.with_udev = UDEV_CONTROL.exists()
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev" if self.with_udev else "kernel")
        self._monitor.filter_by("block")
        self._monitor.start()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until a condition holds, looked at anew with each of udev's events; False if it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            # The end of an event may come before what it tells of can be seen: so never for long.
            self._monitor.poll(EVENT_WAIT_S)
        return True

    def link(self, device: str, link: Path, timeout_s: float = LINK_WAIT_S) -> Path:
        """The link to a device that udev's rule makes; without udev it is made here. If there is none in
        time (the rule is not installed), the device itself."""
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


def leads_to(link: Path, node: Path) -> bool:
    """Whether a link leads to this device."""
    return link.is_symlink() and link.resolve() == node.resolve()


def remove_link(link: Path, device: str) -> None:
    """Remove a link that was made without udev, if it is still that of the device."""
    if not UDEV_CONTROL.exists() and leads_to(link, DEV / device):
        with contextlib.suppress(OSError):
            link.unlink()


class _Mount:
    """A line of mountinfo: the device's numbers, and where it is mounted."""

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        self.device = fields[2]
        self.point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])


def _mounts() -> list[_Mount]:
    return [_Mount(line) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
