"""leaving: has nbdkit's clients leave when polyvold wants nbdkit to stop.

How it works      nbdkit told to stop waits for its clients, and a client that stays connected stays.
                  polyvold keeps the writing end of a pipe; when it is closed, a thread here ends the
                  reading side of every socket that was accepted from one of nbdkit's listening sockets: to
                  nbdkit that is a client that leaves, so what it was asked before is answered. A client
                  that does not read its answers is cut off a little later.
Owner and locks   the thread only shuts sockets down, by descriptors of its own; nbdkit owns and closes its.
Errors            none: a socket that is gone already is what is wanted.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

GRACE_S = 0.5


def watch(pipe: int, listeners: Iterable[int]) -> None:
    """Have the clients of these listening sockets leave when the other end of `pipe` is closed."""
    addresses = set()
    for number in listeners:
        with socket.socket(fileno=os.dup(number)) as listener:
            addresses.add(_address(listener))
    threading.Thread(target=_wait, args=(pipe, addresses), name="leaving", daemon=True).start()


def _wait(pipe: int, addresses: set[str]) -> None:
    while os.read(pipe, 1):
        pass
    for how in (socket.SHUT_RD, socket.SHUT_RDWR):
        for client in sockets():
            with client, suppress(OSError):
                if _address(client) in addresses and not _listens(client):
                    client.shutdown(how)
        time.sleep(GRACE_S)


def sockets() -> Iterator[socket.socket]:
    """Every socket of this process, each with a descriptor of its own."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, or no socket
            number = os.dup(int(entry.name))
            try:
                found = socket.socket(fileno=number)
            except OSError:
                os.close(number)
                raise
            yield found


def _address(one: socket.socket) -> str:
    """Where it is bound: an accepted socket has its listener's, or for TCP the same port."""
    name = one.getsockname()
    return f"port {name[1]}" if one.family in {socket.AF_INET, socket.AF_INET6} else repr(name)


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
