"""Attaching by the kernel's NBD client: make the block device, give it new connections, grow it, end it.

How it works      Connections are opened and negotiated here (handshake.py) and handed to the kernel
                  (netlink.py), which keeps them when this process ends. While a device has no connection its
                  requests wait, up to the dead-connection time-out, for `reconnect`.
Invariants        AK1 the kernel gets a connection only if its export is the one that was attached: the same
                  UUID where both are known, not smaller, and the same read-only flag.
Owner and locks   One process at a time supervises a name: its unit, or else a command by hand.
Errors            errors.py.
"""

import contextlib
import dataclasses
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from polyvol.daemon.client.attach import disks, handshake
from polyvol.daemon.client.attach.address import Address, parse_uri
from polyvol.daemon.client.attach.errors import AlreadyAttached, AnotherExport, KernelRefused
from polyvol.daemon.client.attach.handshake import Export
from polyvol.daemon.client.attach.records import Attached, Places, Wanted
from polyvol.daemon.client.attach.settings import Settings
from polyvol.mapping.sizes import exact_size

if TYPE_CHECKING:  # only code that uses netlink loads the library
    from polyvol.daemon.client.attach.netlink import Kernel

HANDSHAKE_S = 10.0
ARRIVAL_S = 20.0
END_S = 20.0
FORCED_S = 3.0
_DEVICE = re.compile(r"(?:/dev/)?nbd(\d+)")


def device_number(device: str) -> int | None:
    """N of '/dev/nbdN', or None if it is no such path."""
    found = _DEVICE.fullmatch(device)
    return None if found is None else int(found[1])


def find(places: Places, name: str) -> Attached | None:
    """What is attached by this name with the kernel's NBD client, or None."""
    device = disks.attached_nbd().get(name)
    record = places.now(name)
    if record is not None and record.kind != "nbd":
        record = None
    if device is None:
        # A kernel before 5.14 does not identify a device; then only the record does.
        known = record is not None and disks.read(record.device, "backend") is None
        return record if record is not None and known and disks.connected(record.device) else None
    if record is not None and record.device == device:
        return record
    flags = handshake.FLAG_READ_ONLY if disks.read_only(device) else 0
    return Attached(name=name, device=device, kind="nbd", size=disks.size_of(device), flags=flags)


def attach(kernel: "Kernel", places: Places, wanted: Wanted) -> tuple[Attached, Path]:
    """Make the block device; what it is, and its path."""
    address = parse_uri(wanted.uri, wanted.name)
    index = None if wanted.device is None else device_number(wanted.device)
    if index is not None and disks.connected(f"nbd{index}"):
        raise AlreadyAttached(name=wanted.device, device=f"/dev/nbd{index}")
    with disks.UdevWaiter() as waiter, ExitStack() as undo:
        with _connections(address, wanted.connections) as (sockets, export):
            settings = _settings(wanted, export)
            index = kernel.connect(settings, [each.fileno() for each in sockets], index)
        undo.callback(kernel.disconnect, index)
        now = Attached(
            name=wanted.name,
            device=f"nbd{index}",
            kind="nbd",
            size=export.size,
            flags=export.flags,
            uuid=None if export.uuid is None else str(export.uuid),
            uri=address.uri,
        )
        places.write(now)
        if not waiter.wait(lambda: _is_there(now), ARRIVAL_S):
            raise KernelRefused(what=f"/dev/{now.device}", why="the device did not appear in time")
        undo.pop_all()
        return now, waiter.link(now.device, places.link(wanted.name))


def reconnect(kernel: "Kernel", wanted: Wanted, now: Attached) -> Attached:
    """Replace the device's dead connections, and set the export's size if that has grown.

    AnotherExport if the served export is not the attached one (AK1): then nothing has changed."""
    address = parse_uri(wanted.uri, wanted.name)
    with _connections(address, wanted.connections) as (sockets, export):
        grown = same_export(address, now, export)
        _reconfigure(kernel, wanted, grown, export, [each.fileno() for each in sockets])
    return grown


def grow(kernel: "Kernel", wanted: Wanted, now: Attached) -> Attached:
    """Query the export; if it has grown, grow the device."""
    address = parse_uri(wanted.uri, wanted.name)
    export = handshake.look(address, HANDSHAKE_S)
    grown = same_export(address, now, export)
    if grown.size != now.size:
        _reconfigure(kernel, wanted, grown, export, [])
    return grown


def same_export(address: Address, now: Attached, export: Export) -> Attached:
    """What is attached, with the export's size; AnotherExport unless it is what was attached (AK1)."""
    why = None
    uuid = None if now.uuid is None else UUID(now.uuid)
    if uuid is not None and export.uuid is not None and export.uuid != uuid:
        why = "it has another UUID"
    elif export.size < now.size:
        why = f"it has {exact_size(export.size)}, and had {exact_size(now.size)}"
    elif export.read_only != bool(now.flags & handshake.FLAG_READ_ONLY):
        why = "it is read-only" if export.read_only else "it is no longer read-only"
    if why is not None:
        raise AnotherExport(export=address.export, address=address.server, why=why)
    known = uuid or export.uuid
    return dataclasses.replace(now, size=export.size, uuid=None if known is None else str(known))


def detach(kernel: "Kernel", places: Places, now: Attached, *, force: bool) -> None:
    """Write what is not written yet, and end the device; AttachedInUse or NotWritten if that cannot be.
    With `force`, what is not written is lost; a device that is in use stays until its users close it, and
    all its I/O fails. The caller has looked who uses it."""
    number = device_number(now.device)
    if number is not None and disks.connected(now.device):
        with disks.UdevWaiter() as waiter:
            with contextlib.nullcontext() if force else disks.written_out(now.name, now.device):
                kernel.disconnect(number)
            gone = waiter.wait(lambda: not disks.connected(now.device), FORCED_S if force else END_S)
            if not gone and not force:
                raise KernelRefused(what=f"to end /dev/{now.device}", why="it took too long")
    disks.remove_link(places.link(now.name), now.device)
    places.forget(Attached, now.name)


@contextlib.contextmanager
def _connections(address: Address, count: int) -> Iterator[tuple[list[socket.socket], Export]]:
    """Connections to an export, at least one: as many as are wanted and the server allows. They are closed at
    the end; the kernel keeps its own references."""
    with ExitStack() as stack:
        first, export = handshake.open_export(address, HANDSHAKE_S)
        stack.callback(first.close)
        sockets = [first]
        for _ in range(count - 1 if export.multi_conn else 0):
            another, same = handshake.open_export(address, HANDSHAKE_S)
            stack.callback(another.close)
            if same != export:
                raise AnotherExport(export=address.export, address=address.server, why="it has just changed")
            sockets.append(another)
        yield sockets, export


def _settings(wanted: Wanted, export: Export) -> Settings:
    return Settings(
        size=export.size,
        flags=export.flags,
        block_size=max(wanted.block_size, export.block_size_min),
        backend=disks.BACKEND_PREFIX + wanted.name,
        timeout_s=wanted.timeout_s,
        dead_timeout_s=wanted.dead_timeout_s,
    )


def _reconfigure(kernel: "Kernel", wanted: Wanted, now: Attached, export: Export, sockets: list[int]) -> None:
    number = device_number(now.device)
    assert number is not None, f"{now.device} is no NBD device"
    backend_known = disks.read(now.device, "backend") is not None
    kernel.reconfigure(number, _settings(wanted, export), sockets, backend_known=backend_known)


def _is_there(now: Attached) -> bool:
    return disks.size_of(now.device) > 0 and (disks.DEV / now.device).exists()
