"""peer: who the client of the connection at hand is, and how its socket is shut down.

How it works      nbdkit has functions for the peer of the connection that the calling thread serves. Its
                  Python plugin does not pass them on, but the program that we run in exports them. The socket
                  itself is not to be had from nbdkit: it is found among the descriptors of this process, by
                  the address of its peer, or by the process at its other end. A process may have several:
                  they are shut down only if all of them are to end.
Owner and locks   Sockets are nbdkit's; they are shut down by descriptors of our own.
Errors            None: what is not known is left out.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress

from polyvol.daemon.clients import Peer
from polyvol.nbd_plugin.leaving import sockets

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


def shutter(whose: Peer) -> Callable[[int], bool]:
    """What shuts the sockets of this peer down if they are as many as it is told; it says whether it did."""
    return lambda count: _shut_down(whose, count)


def _shut_down(whose: Peer, count: int) -> bool:
    with ExitStack() as stack:
        found = []
        for one in sockets():
            if _of(one) == whose:
                found.append(stack.enter_context(one))
            else:
                one.close()
        if len(found) != count:
            return False
        for one in found:
            with suppress(OSError):  # it is gone already
                one.shutdown(socket.SHUT_RDWR)
    return True


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
