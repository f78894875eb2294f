"""The client's side of NBD's handshake, for sockets that the kernel then uses.

How it works      Fixed newstyle; OPT_GO (or OPT_INFO, to look only) with the export's name, asking for its
                  block sizes and description. Structured replies are not asked for: the kernel does not know
                  them. When GO is acknowledged, exactly the bytes of the handshake were read, and the next
                  byte on the socket belongs to the transmission phase.
Invariants        AH1 every length that the server gives is bounded before it is read; AH2 the whole handshake
                  is bounded in time.
Errors            ServerUnreachable, ExportRefused, NotNbd.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from polyvol.daemon.client.attach.address import Address
from polyvol.daemon.client.attach.errors import ExportRefused, NotNbd, ServerUnreachable
from polyvol.mapping.os_errors import reason
from polyvol.mapping.sizes import exact_size
from polyvol.snapshot.snapshot import described_uuid

# The same as the server's in engine/src/nbd/wire.rs.
MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
FIXED_NEWSTYLE = 1 << 0
NO_ZEROES = 1 << 1
OPT_ABORT = 2
OPT_INFO = 6
OPT_GO = 7
REP_ACK = 1
REP_INFO = 3
REP_ERROR = 1 << 31
REFUSALS = {
    REP_ERROR + 1: "it does not know the option that asks for it",
    REP_ERROR + 2: "its policy forbids it",
    REP_ERROR + 5: "it wants TLS",
    REP_ERROR + 6: "there is no such export",
    REP_ERROR + 7: "it is shutting down",
}
INFO_EXPORT = 0
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3
FLAG_READ_ONLY = 1 << 1
FLAG_CAN_MULTI_CONN = 1 << 8

REPLY_BYTES_MAX = 64 << 10
REPLIES_MAX = 64
SIZE_MAX = (1 << 63) - 1
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
"""Seconds, seconds, times: a server whose machine is gone is noticed in half a minute."""
UNACKNOWLEDGED_MS = 30_000
LOOK_S = 5.0
"""How long a command waits for a server that it looks at, before it ends a device."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Export:
    """A server's information about an export. Sizes in bytes; `flags` are NBD's transmission flags; `uuid` is
    that of the volume or snapshot, if the server gives it in the description."""

    size: int
    flags: int
    block_size_min: int = 1
    uuid: UUID | None = None

    @property
    def read_only(self) -> bool:
        """Whether it can only be read."""
        return bool(self.flags & FLAG_READ_ONLY)

    @property
    def multi_conn(self) -> bool:
        """Whether several connections at a time see each other's writes and flushes."""
        return bool(self.flags & FLAG_CAN_MULTI_CONN)


def open_export(address: Address, timeout_s: float) -> tuple[socket.socket, Export]:
    """A blocking socket in the transmission phase, for the kernel."""
    channel = _connect(address, timeout_s)
    try:
        export = _guarded(address, lambda: _negotiate(address, channel, OPT_GO, timeout_s))
        channel.settimeout(None)
    except BaseException:
        channel.close()
        raise
    return channel, export


def look(address: Address, timeout_s: float) -> Export:
    """The server's information about the export, without opening it."""
    with _connect(address, timeout_s) as channel:
        export = _guarded(address, lambda: _negotiate(address, channel, OPT_INFO, timeout_s))
        with contextlib.suppress(OSError):
            channel.sendall(struct.pack(">QII", OPTION_MAGIC, OPT_ABORT, 0))
    return export


def _connect(address: Address, timeout_s: float) -> socket.socket:
    def connected() -> socket.socket:
        if address.socket is None:
            channel = socket.create_connection((address.host, address.port), timeout_s)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
            for option, value in KEEPALIVE.items():
                channel.setsockopt(socket.IPPROTO_TCP, option, value)
            return channel
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.settimeout(timeout_s)
            channel.connect(str(address.socket))
        except BaseException:
            channel.close()
            raise
        return channel

    return _guarded(address, connected)


def _guarded(address: Address, action: Callable[[], _T]) -> _T:
    """The action's result; its OSErrors become ServerUnreachable."""
    try:
        return action()
    except TimeoutError as error:
        raise ServerUnreachable(address=address.server, why="it took too long") from error
    except UnicodeError as error:  # a label of the host is empty, too long, or no text
        raise ServerUnreachable(address=address.server, why="no host can have that name") from error
    except OSError as error:
        raise ServerUnreachable(address=address.server, why=reason(error, address.socket)) from error


class _Stream:
    """Reads of a whole number of bytes, all of them within one time (AH2)."""

    def __init__(self, channel: socket.socket, address: Address, timeout_s: float) -> None:
        self._channel = channel
        self._address = address
        self._deadline = time.monotonic() + timeout_s

    def read(self, length: int) -> bytes:
        parts = []
        while length:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            part = self._channel.recv(length)
            if not part:
                raise ServerUnreachable(address=self._address.server, why="it closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _negotiate(address: Address, channel: socket.socket, option: int, timeout_s: float) -> Export:
    stream = _Stream(channel, address, timeout_s)
    magic, option_magic, offered = struct.unpack(">QQH", stream.read(18))
    if magic != MAGIC or option_magic != OPTION_MAGIC:
        raise NotNbd(address=address.server, why="its greeting is not that of an NBD server of today")
    if not offered & FIXED_NEWSTYLE:
        raise NotNbd(address=address.server, why="it does not offer fixed newstyle negotiation")
    name = address.export.encode()
    wanted = struct.pack(">HHH", 2, INFO_DESCRIPTION, INFO_BLOCK_SIZE)
    data = struct.pack(">I", len(name)) + name + wanted
    channel.sendall(
        struct.pack(">I", offered & (FIXED_NEWSTYLE | NO_ZEROES))
        + struct.pack(">QII", OPTION_MAGIC, option, len(data))
        + data
    )
    return _answer(address, stream, option)


def _answer(address: Address, stream: _Stream, option: int) -> Export:
    """The export as the replies to GO or INFO describe it."""
    size: int | None = None
    flags, block_size_min = 0, 1
    uuid: UUID | None = None
    for _ in range(REPLIES_MAX):
        magic, echoed, kind, length = struct.unpack(">QIII", stream.read(20))
        if magic != OPTION_REPLY_MAGIC or echoed != option:
            raise NotNbd(address=address.server, why="its reply is not one to what was asked")
        if length > REPLY_BYTES_MAX:
            raise NotNbd(address=address.server, why=f"a reply is said to have {length} bytes")  # AH1
        data = stream.read(length)
        if kind & REP_ERROR:
            said = data.decode("utf-8", "replace").strip()
            why = REFUSALS.get(kind) or said or f"it answers with error {kind & ~REP_ERROR}"
            raise ExportRefused(address=address.server, export=address.export, why=why)
        if kind == REP_ACK:
            if size is None:
                raise NotNbd(address=address.server, why="it agrees without having told the size")
            return Export(size, flags, block_size_min, uuid)
        if kind != REP_INFO or len(data) < 2:
            raise NotNbd(address=address.server, why=f"a reply of kind {kind} is not expected here")
        (item,), rest = struct.unpack_from(">H", data), data[2:]
        if item == INFO_EXPORT and len(rest) == 10:
            size, flags = struct.unpack(">QH", rest)
            if size > SIZE_MAX:
                raise NotNbd(address=address.server, why=f"its size would be {exact_size(size)}")
        elif item == INFO_BLOCK_SIZE and len(rest) == 12:
            block_size_min = struct.unpack(">III", rest)[0]
        elif item == INFO_DESCRIPTION:
            uuid = described_uuid(rest.decode("utf-8", "replace"))
        elif item in (INFO_EXPORT, INFO_BLOCK_SIZE):
            raise NotNbd(address=address.server, why=f"information {item} has {len(rest)} bytes")
    raise NotNbd(address=address.server, why=f"it sends more than {REPLIES_MAX} replies")
