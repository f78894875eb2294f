"""disconnect: disconnects nbdkit's clients.

How it works      When nbdkit is stopped, it waits until its clients have left. So the
                  reading side of every socket that was accepted from one of nbdkit's listening sockets is
                  shut down: nbdkit then treats the client as disconnected, and answers its pending requests.
                  A client that does not read its replies is cut off a little later.
Owner and locks   Sockets are only shut down, by descriptors of our own; nbdkit owns and closes its.
Errors            none: a socket that is already closed is fine.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Addresses = frozenset[str]


def listening(without: int | None) -> Addresses:
    """The addresses on which this process listens, except that of one descriptor."""
    found: dict[str, bool] = {}
    for listener in sockets():
        with listener, suppress(OSError):
            if _listens(listener):
                found[_address(listener)] = True
    if without is not None:
        with socket.socket(fileno=os.dup(without)) as listener:
            found.pop(_address(listener), None)
    return frozenset(found)


def shut_down(addresses: Addresses, how: int) -> None:
    """Shut down every socket that was accepted at one of these addresses: SHUT_RD or SHUT_RDWR."""
    for client in sockets():
        with client, suppress(OSError):
            if _address(client) in addresses and not _listens(client):
                client.shutdown(how)


def sockets() -> Iterator[socket.socket]:
    """Every socket of this process once, each with a descriptor of its own.

    A number in the list may by now be that of a descriptor that was given before."""
    given = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed in between, or no socket
            number = os.dup(int(entry.name))
            inode = os.fstat(number).st_ino
            try:
                found = socket.socket(fileno=number)
            except OSError:
                os.close(number)
                raise
            if inode in given:
                found.close()
                continue
            given.add(inode)
            yield found


def _address(one: socket.socket) -> str:
    """Where it is bound: an accepted socket has its listener's, or for TCP the same port."""
    name = one.getsockname()
    return f"port {name[1]}" if one.family in {socket.AF_INET, socket.AF_INET6} else repr(name)


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
