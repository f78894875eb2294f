"""peer: who the client of the connection at hand is, and how its socket is shut down.

How it works      nbdkit has functions for the peer of the connection that the calling thread serves. Its
                  Python plugin does not pass them on, but the program that we run in exports them. nbdkit has
                  no function for the socket. But a connection has one thread, by our thread model: while that
                  waits for its client, the kernel shows in /proc/self/task/TID/syscall for which descriptor.
                  That is shut down if its peer is the connection's.
Owner and locks   Sockets are nbdkit's; they are shut down by descriptors of our own.
Errors            None: what is not known is left out.
"""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from polyvol.daemon.clients.verbs import Peer

DESCRIPTOR_MAX = 1 << 30
_ADDRESS_BYTES = 128
_CREDENTIALS = struct.Struct("3i")
_FAMILY = struct.Struct("=H")
_nbdkit = ctypes.CDLL(None)


def peer() -> Peer:
    """The other end of the connection that this thread serves."""
    try:
        family, address = _name()
        if family == socket.AF_UNIX:
            pid, uid = _number("nbdkit_peer_pid"), _number("nbdkit_peer_uid")
            return Peer(pid=pid if pid > 0 else None, uid=uid if uid >= 0 else None)
    except AttributeError:  # an nbdkit that does not have them
        return Peer()
    return Peer(address=address)


def socket_end(whose: Peer) -> Callable[[], bool]:
    """A function that shuts down the socket of the connection that this thread serves, if the thread waits
    for it when it is called, and says whether it did."""
    thread = threading.get_native_id()
    return lambda: _shut_down(thread, whose)


def _shut_down(thread: int, whose: Peer) -> bool:
    number = _waits_for(thread)
    if number is None:
        return False
    with suppress(OSError), ExitStack() as stack:
        duplicate = os.dup(number)
        stack.callback(os.close, duplicate)
        one = stack.enter_context(socket.socket(fileno=os.dup(duplicate)))
        # Until the descriptor was duplicated, its number could become that of another connection.
        if _of(one) == whose and _waits_for(thread) == number:
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


def _waits_for(thread: int) -> int | None:
    """The descriptor, if it is one, that is the first argument of the system call in which a thread waits."""
    try:
        words = Path(f"/proc/self/task/{thread}/syscall").read_text().split()
    except OSError:
        return None
    if len(words) < 2 or words[0] == "-1":
        return None
    number = int(words[1], 16)
    return number if number <= DESCRIPTOR_MAX else None


def _of(one: socket.socket) -> Peer | None:
    with suppress(OSError):
        if one.family == socket.AF_UNIX:
            told = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(told)
            return None if pid in (0, os.getpid()) else Peer(pid=pid, uid=uid)
        if one.family in (socket.AF_INET, socket.AF_INET6):
            return Peer(address=_text(one.getpeername()))
    return None


def _number(function: str) -> int:
    asked = getattr(_nbdkit, function)
    asked.restype = ctypes.c_int64
    return int(asked())


def _name() -> tuple[int, str | None]:
    told = ctypes.create_string_buffer(_ADDRESS_BYTES)
    length = ctypes.c_uint(_ADDRESS_BYTES)
    if _nbdkit.nbdkit_peer_name(told, ctypes.byref(length)) < 0:
        return 0, None
    buffer = told.raw
    (family,) = _FAMILY.unpack_from(buffer)
    port = int.from_bytes(buffer[2:4], "big")
    if family == socket.AF_INET:
        return family, _text((socket.inet_ntop(family, buffer[4:8]), port))
    if family == socket.AF_INET6:
        return family, _text((socket.inet_ntop(family, buffer[8:24]), port))
    return family, None


def _text(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
