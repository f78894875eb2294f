"""system: a volume of a real polyvold, spoken to by libnbd over several connections, for the model.

How it works      Each operation goes over the next of three connections, so that what one wrote is read by
                  another. Snapshots are taken and deleted by the control API. A restart stops or kills the
                  daemon and starts it again; the connections are made again.
Owner and locks   One thread cuts, deletes and restarts; any may read and write.
Errors            OSError with the errno that the server gave.
"""

import errno
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nbd

from polyvol.daemon.client.cli.client import ApiError
from tests.support.daemon import Daemon
from tests.support.model import BLOCK, errno_of, same
from tests.support.nbd import BASE_ALLOCATION, allocation
from tests.support.proc import wait_until

CONNECTIONS = 3
PARTITION = "1M"
SIZE = 5 * (1 << 20) + 3 * BLOCK
DEVICE = "5M"
LOG_DEVICE = "65M"


@contextmanager
def errors_as_os() -> Iterator[None]:
    """libnbd's errors as OSError."""
    try:
        yield
    except nbd.Error as error:
        raise OSError(error.errnum or errno.EIO, str(error)) from error


def unguarded(address: str) -> Any:
    """A connection that sends what it is told to, also what the server must refuse."""
    handle = nbd.NBD()
    handle.add_meta_context(BASE_ALLOCATION)
    handle.set_strict_mode(0)
    handle.connect_uri(address)
    return handle


class NbdSystem:
    """One volume of SIZE bytes on two devices, with a small change log and another one to name."""

    def __init__(self, daemon: Daemon, name: str, *, processors: int = 2) -> None:
        self.daemon = daemon
        self.name = name
        self.size = SIZE
        self.keeps_trimmed = False
        self._numbers = itertools.count(1)
        devices = [f"{name}-a", f"{name}-b"]
        self._logs = [f"{name}-log", f"{name}-named"]
        for device in devices:
            self._add_device(device, DEVICE)
        for device in self._logs:
            self._add_device(device, LOG_DEVICE)
        placement = [part for device in devices for part in ("--device", device)]
        placement += ["--log-device", self._logs[0], "--partition-size", PARTITION]
        daemon.ok("volume", "create", name, "--size", SIZE, "--processors", processors, *placement)
        self.connect()

    def _add_device(self, name: str, size: str) -> None:
        self.daemon.ok("device", "add", self.daemon.directory / f"{name}.img", "--name", name, "--size", size)

    def connect(self) -> None:
        """Reconnect."""
        address = self.daemon.uri(self.name)
        self._handles = [unguarded(address) for _ in range(CONNECTIONS)]
        self._turn = itertools.cycle(self._handles)

    def disconnect(self) -> None:
        """End all connections, also with a server that is gone."""
        for handle in self._handles:
            with suppress(nbd.Error):
                handle.shutdown()
        self._handles = []

    def read(self, length: int, offset: int) -> bytes:
        with errors_as_os():
            return bytes(next(self._turn).pread(length, offset))

    def write(self, data: bytes, offset: int, *, fua: bool = False) -> None:
        with errors_as_os():
            next(self._turn).pwrite(data, offset, nbd.CMD_FLAG_FUA if fua else 0)

    def zero(self, length: int, offset: int, *, no_hole: bool, fast: bool, fua: bool) -> None:
        flags = nbd.CMD_FLAG_FUA if fua else 0
        flags |= nbd.CMD_FLAG_NO_HOLE if no_hole else 0
        flags |= nbd.CMD_FLAG_FAST_ZERO if fast else 0
        with errors_as_os():
            next(self._turn).zero(length, offset, flags)

    def trim(self, length: int, offset: int, *, fua: bool) -> None:
        with errors_as_os():
            next(self._turn).trim(length, offset, nbd.CMD_FLAG_FUA if fua else 0)

    def flush(self) -> None:
        with errors_as_os():
            next(self._turn).flush()

    def statuses(self) -> Iterable[tuple[int, bool]]:
        at = 0
        while at < self.size:
            told = allocation(next(self._turn), self.size - at, at)
            assert told, f"block status at {at} says nothing"
            for length, flags in told:
                at += length
                yield length, bool(flags & nbd.STATE_ZERO)

    def read_snapshot(self, name: str) -> bytes:
        handle = unguarded(self.daemon.uri(f"{self.name}@{name}"))
        try:
            assert handle.is_read_only()

            def write() -> None:
                with errors_as_os():
                    handle.pwrite(b"x", 0)

            assert errno_of(write) == errno.EPERM
            whole = bytes(handle.pread(self.size, 0))
            same(f"an odd read of snapshot {name}", handle.pread(9000, 4097), whole[4097:13097], 4097)
            return whole
        finally:
            handle.shutdown()

    def cut(self, *, own_rule: bool = False) -> str:
        name = f"s{next(self._numbers)}"
        body = {"volumes": [self.name], "name": name, "log_device": self._logs[1] if own_rule else None}
        self.daemon.api.post("snapshots", body=body)
        return name

    def delete(self, name: str) -> None:
        delete_when_unused(self.daemon, self.name, name)

    def grow(self) -> None:
        """Add a change log of 4 MiB in a file of its own."""
        self.daemon.api.post("volumes", self.name, "logs", body={"devices": [], "size": 4 << 20})

    def restart(self, *, kill: bool = False) -> None:
        if kill:
            self.daemon.kill()
            self.disconnect()
            self.daemon.start()
        else:
            self.disconnect()
            self.daemon.restart()
        self.connect()

    def remove(self) -> None:
        """Delete the volume and its devices."""
        self.disconnect()
        wait_until(lambda: self._try_delete(), f"the end of volume {self.name}", 10)
        for device in self.daemon.json("device", "list"):
            if not device["volumes"]:
                self.daemon.ok("device", "remove", device["name"])

    def _try_delete(self) -> bool:
        return self.daemon.cli("volume", "delete", self.name, "--yes").rc == 0


def delete_when_unused(daemon: Daemon, volume: str, name: str) -> None:
    """Delete a snapshot whose last client is just leaving."""

    def done() -> bool:
        try:
            daemon.api.delete("volumes", volume, "snapshots", name)
        except ApiError as error:
            if error.code != "snapshot-in-use":
                raise
            return False
        return True

    wait_until(done, f"the end of {volume}@{name}", 10)
