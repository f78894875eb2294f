"""sim_devices: the sim engine's devices: open descriptors, or nothing where one is not there."""

import os
from typing import TYPE_CHECKING, Any

from tests.support.sim_checks import EngineError, check, devices_of

if TYPE_CHECKING:
    from tests.support.sim_engine import SimWorld

ABSENT = -1


class SimDevices:
    """What a sim engine does with devices."""

    world: "SimWorld"
    devices: dict[int, int]
    """Open descriptors by device; ABSENT for one that is not there."""
    direct: set[int]
    """Devices that are used past the page cache."""
    volumes: dict[int, Any]

    def _begin(self, name: str, *arguments: object) -> None:
        raise NotImplementedError

    def open_device(
        self, device: int, path: str, *, sparse: bool = True, direct: bool = False, size: int = 0
    ) -> None:
        self._begin("open_device", device)
        check(device not in self.devices, "exists", f"device {device} is open")
        self.devices[device] = _opened(path, direct=direct)
        self._note(device, direct=direct)

    def absent_device(
        self, device: int, *, sparse: bool = True, clean: bool = False, direct: bool = False, size: int = 0
    ) -> None:
        self._begin("absent_device", device, clean)
        check(device not in self.devices, "exists", f"device {device} is open")
        self.devices[device] = ABSENT
        self._note(device, direct=direct)

    def reopen_device(self, device: int, path: str) -> None:
        self._begin("reopen_device", device)
        check(device in self.devices, "not-found", f"device {device} is not open")
        opened = _opened(path, direct=device in self.direct)
        self._close(self.devices[device])
        self.devices[device] = opened
        if device not in self.world.stays_faulty:
            self.world.faults.pop(device, None)

    def close_device(self, device: int) -> None:
        self._begin("close_device", device)
        check(device in self.devices, "not-found", f"device {device} is not open")
        for volume in self.volumes.values():
            check(device not in devices_of(volume.spec), "busy", f"device {device} is in use")
        self._close(self.devices.pop(device))
        self.direct.discard(device)

    def _note(self, device: int, *, direct: bool) -> None:
        if direct:
            self.direct.add(device)

    @staticmethod
    def _close(fd: int) -> None:
        if fd != ABSENT:
            os.close(fd)


def _opened(path: str, *, direct: bool) -> int:
    """A descriptor. What is direct must take O_DIRECT; its bytes are read without, as they go anywhere."""
    try:
        if direct:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError("io", f"{path}: {error.strerror}", error.errno or 0) from error
