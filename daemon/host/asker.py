"""The asker: the client process of the control API call that this thread answers.

How it works      The kernel reports the process at the other end of the connection (SO_PEERCRED). The control
                  server sets it around each call; a thread that works without a request has no asker.
Owner and locks   Each thread has its own.
Errors            None: an unknown asker is None.
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


def asker() -> int | None:
    """The process id of the asker."""
    return _current.pid


@contextmanager
def asked_over(connection: socket.socket) -> Iterator[None]:
    """Within this context, the peer of a connection is this thread's asker."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _current.pid = _CREDENTIALS.unpack(data)[0] or None
    except OSError:  # closed in between
        _current.pid = None
    try:
        yield
    finally:
        _current.pid = None


def parent_of(pid: int) -> int | None:
    """The parent of a process; None if it has none or is not visible."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) or None
    except (OSError, IndexError, ValueError):
        return None
