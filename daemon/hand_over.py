"""Hand-over (live restart): NBD connections and held devices are passed to the next process.

How it works      At its stop, a daemon whose service manager stores file descriptors has the engine freeze
                  every connection, and gives the manager each one's socket, and a file in memory with their
                  state (docs/formats-hand-over.md). The next daemon gets all of it, serves its volumes, and
                  resumes the connections; what cannot be resumed is closed, and its client reconnects. The
                  descriptors of devices are stored with the manager too, so that no other program can take a
                  device between the two processes.
Invariants        O1 a socket is read by one process: the one that takes connections over empties the file
                  first, so that no other resumes them, whatever the manager still stores; O2 a connection is
                  resumed only with the volume or snapshot of the same UUID; O3 nothing stays with the manager
                  once a daemon serves.
Durability        Nothing on a disk. A daemon killed between freezing and the next one's start loses the
                  connections whose state it has not stored; no data, because they are answered by then.
Errors            None is raised: a failure costs a connection, and is logged.
"""

import contextlib
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import crcmod.predefined

from polyvol.daemon.context import Context
from polyvol.daemon.host.notify import Store, remove_stored
from polyvol.daemon.host.sockets import HANDED_CONNECTION, HANDED_DEVICE, HANDED_FILE, InheritedSockets
from polyvol.daemon.isolation import isolate
from polyvol.daemon.restores.verbs import HIDDEN
from polyvol.daemon.workers import Workers
from polyvol.mapping.os_errors import reason
from polyvol.mapping.sizes import counted
from polyvol.snapshot.snapshot import export_name, export_parts

MAGIC = b"PVHAND\r\n"
VERSION = 1
SETTLE_S = 10.0
FLUSH_S = 5.0
"""How long volumes are flushed before connections are frozen."""
FILE_BYTES_MAX = 1 << 30
_HEADER = struct.Struct("<8s I I Q I I")
_COVERED = 16
_ENTRY = struct.Struct("<I I 16s")
_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
_log = logging.getLogger("polyvol")


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection: the number of its socket, what it is exported from, the engine's state of it."""

    number: int
    uuid: UUID
    state: bytes


class Unusable(Exception):
    """What was handed over cannot be used; the text says why, as a clause."""


def pack(entries: Iterable[Entry], frozen_ns: int) -> bytes:
    """The file's bytes; `frozen_ns` by the host's monotonic clock."""
    each = list(entries)
    body = b"".join(
        _ENTRY.pack(entry.number, len(entry.state), entry.uuid.bytes) + entry.state for entry in each
    )
    covered = _HEADER.pack(MAGIC, VERSION, 0, frozen_ns, len(each), 0)[_COVERED:] + body
    return MAGIC + struct.pack("<II", VERSION, _crc32c(covered)) + covered


def unpack(data: bytes) -> tuple[int, list[Entry]]:
    """`frozen_ns` and the connections; Unusable if the bytes are not whole or of another version."""
    if not data:
        raise Unusable("they were taken over once already, by a polyvold that is no more")
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise Unusable("what was handed over with them is not whole")
    _, version, crc, frozen_ns, count, reserved = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Unusable(f"they were handed over in version {version}, which this polyvol does not know")
    if crc != _crc32c(data[_COVERED:]) or reserved:
        raise Unusable("what was handed over with them is not whole")
    entries = []
    at = _HEADER.size
    for _ in range(count):
        if at + _ENTRY.size > len(data):
            raise Unusable("what was handed over with them is not whole")
        number, length, uuid = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        entries.append(Entry(number, UUID(bytes=uuid), data[at : at + length]))
        at += length
    if at != len(data):
        raise Unusable("what was handed over with them is not whole")
    return frozen_ns, entries


def give(context: Context, store: Store) -> None:
    """Freeze all connections and give them to the service manager; those that cannot be are closed."""
    _flush_all(context)
    frozen_ns = time.monotonic_ns()
    try:
        handed = context.engine.hand_over()
    except context.engine_error as error:
        _log.error("the connections cannot be handed over: %s", error)
        return
    uuids = {name: uuid for uuid, name in _exports(context).items()}
    entries = []
    lost = Counter(handed["closed"])
    for number, connection in enumerate(handed["connections"], start=1):
        export = connection["export"]
        try:
            store.put(f"{HANDED_CONNECTION}{number}", connection["fd"])
            entries.append(Entry(number, uuids[export], connection["state"]))
        except (OSError, KeyError):
            lost[export] += 1
        finally:
            os.close(connection["fd"])
    try:
        if entries:
            _give_file(store, pack(entries, frozen_ns))
        _give_devices(context, store)
        if not store.settle(SETTLE_S):
            _log.warning("the service manager does not say whether it has the connections")
    except OSError as error:
        _log.error("the service manager does not take the connections: %s", error)
    for export in [export for export in lost if HIDDEN in export]:
        said = "closed %s of a restore to volume %s: resume it with `polyvol restore ... --resume`"
        name = _volume(export)
        _log.warning(said, counted(lost.pop(export), "connection"), name, extra={"VOLUME": name})
    for export, count in lost.items():
        said = "closed %s to %s: requests or replies did not end in time"
        fields = {"VOLUME": _volume(export), **_fields(export)}
        _log.warning(said, counted(count, "connection"), export, extra=fields)
    if entries:
        _log.info("handed %s over to the next polyvold", counted(len(entries), "connection"))


def _flush_all(context: Context) -> None:
    """Flush all volumes, so that the stop, while hosts wait, has little left to do; those that do not end in
    time are left to it."""

    def flush(volume: int) -> None:
        try:
            context.engine.flush(volume)
        except context.engine_error as error:  # the hosts' next flush fails, also after the restart
            _log.warning("flushing before the connections are handed over: %s", error)

    workers = Workers("polyvol-flush", stuck_s=FLUSH_S)
    for volume in context.catalog.volumes.all():
        workers.run(volume.id, partial(flush, volume.id))
    workers.wait(FLUSH_S)
    workers.stop(0)


def take_devices(passed: InheritedSockets) -> dict[str, int]:
    """The descriptors of devices that were passed to this process, by device UUID; it owns them."""
    devices = dict(passed.devices)
    passed.devices.clear()
    return devices


def forget_devices(devices: Iterable[str]) -> None:
    """Have the service manager no longer keep these devices, by UUID: this process holds them (O3)."""
    remove_stored([f"{HANDED_DEVICE}{uuid}" for uuid in devices])


def take(context: Context, handed: dict[str, int]) -> None:
    """Resume the connections that were passed to this process, by name; `handed` is empty afterwards."""
    if handed:
        with isolate(context, "taking over the connections of the polyvold before"):
            _take(context, handed)


def _take(context: Context, handed: dict[str, int]) -> None:
    names = list(handed)
    begun = Counter[str]()
    frozen_ns = 0
    try:
        frozen_ns, entries = unpack(_claim(handed.pop(HANDED_FILE, None)))  # O1
        exports = _exports(context)
        for entry in entries:
            fd = handed.pop(f"{HANDED_CONNECTION}{entry.number}", None)
            if fd is not None:  # else its client has left in the meantime
                _adopt(context, entry, fd, exports.get(entry.uuid), begun)
    except Unusable as error:
        context.events.add("warning", f"closed {counted(len(handed), 'connection')}: {error}")
    finally:
        _close(handed)
        remove_stored(names)  # O3
    pause_ms = (time.monotonic_ns() - frozen_ns) // 1_000_000
    for export, count in sorted(begun.items()):
        text = f"{counted(count, 'connection')} to {export} resumed after a pause of {pause_ms / 1000:.2f} s"
        context.events.add("info", text, volume=_volume(export), PAUSE_MS=pause_ms, **_fields(export))


def discard(passed: InheritedSockets) -> None:
    """Close what was passed to a process that cannot resume it."""
    forget_devices(passed.devices)
    while passed.devices:
        os.close(passed.devices.popitem()[1])
    handed = passed.handed
    if handed:
        others = sum(name != HANDED_FILE for name in handed)
        _log.warning("closed %s: nbdkit cannot take over what polyvold had", counted(others, "connection"))
        names = list(handed)
        _close(handed)
        remove_stored(names)


def _adopt(context: Context, entry: Entry, fd: int, export: str | None, begun: Counter[str]) -> None:
    if export is None:  # O2
        _end(fd)
        context.events.add("warning", "closed 1 connection: its volume or snapshot is no longer there")
        return

    def failed(reason: str) -> None:
        text = f"closed 1 connection to {export}: {reason}"
        context.events.add("warning", text, volume=_volume(export), **_fields(export))

    with isolate(context, f"taking over a connection to {export}", failed):
        with context.engine_errors(f"taking over a connection to {export}"):
            context.engine.adopt(fd, export, entry.state)
        begun[export] += 1


def _exports(context: Context) -> dict[UUID, str]:
    """The name of every volume and snapshot, by UUID."""
    volumes = {volume.id: volume for volume in context.catalog.volumes.all()}
    exports = {volume.uuid: volume.name for volume in volumes.values()}
    for record in context.catalog.snapshots.all():
        if record.volume in volumes:
            exports[record.uuid] = export_name(volumes[record.volume].name, record.name)
    return exports


def _give_devices(context: Context, store: Store) -> None:
    """Give the devices to the service manager; one that it does not take can be taken by others meanwhile."""
    for device in context.catalog.devices.all():
        file = context.files.get(device.id)
        if file is not None:
            with contextlib.suppress(OSError):
                store.put(f"{HANDED_DEVICE}{device.uuid}", file.fd)


def _give_file(store: Store, data: bytes) -> None:
    number = os.memfd_create(HANDED_FILE, os.MFD_CLOEXEC)
    with open(number, "wb") as file:  # noqa: PTH123 - it has no path
        file.write(data)
        file.flush()
        store.put(HANDED_FILE, number)


def _claim(number: int | None) -> bytes:
    """What the file says; it is empty from here on."""
    if number is None:
        raise Unusable("nothing was handed over with them")
    try:
        with open(number, "r+b") as file:  # noqa: PTH123
            size = os.fstat(number).st_size
            if size > FILE_BYTES_MAX:
                raise Unusable(f"{size} bytes were handed over with them, more than any polyvold does")
            file.seek(0)
            data = file.read(size)
            file.truncate(0)
    except OSError as error:
        raise Unusable(f"what was handed over with them cannot be read: {reason(error)}") from error
    except MemoryError as error:
        raise Unusable("there is no memory for what was handed over with them") from error
    return data


def _close(handed: dict[str, int]) -> None:
    while handed:
        _end(handed.popitem()[1])


def _end(fd: int) -> None:
    """Close a socket for all who have it."""
    try:
        peer = socket.socket(fileno=fd)
    except OSError:  # it is no socket
        os.close(fd)
        return
    with peer, contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


def _fields(export: str) -> dict[str, str]:
    """The journal's fields of an export, but for VOLUME."""
    _, snapshot = export_parts(export)
    return {} if snapshot is None else {"SNAPSHOT": snapshot}


def _volume(export: str) -> str:
    return export_parts(export)[0]
