"""The caller: the client process of the control API call that this thread answers.

How it works      The kernel reports the process at the other end of the connection (SO_PEERCRED). The control
                  server sets it around each call; a thread that works without a request has no
                  caller.
Owner and locks   Each thread has its own.
Errors            None: an unknown caller is None.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")


class _Current(threading.local):
    pid: int | None = None


_current = _Current()


def caller_pid() -> int | None:
    """The process id of the caller."""
    return _current.pid


@contextmanager
def called_over(connection: socket.socket | None) -> Iterator[None]:
    """What this thread does within is asked for by the peer of a connection; None: it is closed."""
    _current.pid = None if connection is None else _peer_of(connection)
    try:
        yield
    finally:
        _current.pid = None


def _peer_of(connection: socket.socket) -> int | None:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return _CREDENTIALS.unpack(data)[0] or None
    except OSError:  # it has been closed
        return None


def parent_of(pid: int) -> int | None:
    """The parent of a process; None if it has none or is not visible."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) or None
    except (OSError, IndexError, ValueError):
        return None
