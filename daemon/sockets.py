"""Listening sockets: the NBD sockets and the control socket, bound before anything else happens.

How it works      A unix socket gets its mode 0600 before it is bound (Linux takes it from the socket), so
                  that it never has another; a stale one in its place is removed, one that somebody answers on
                  is not.
Errors            SocketUnusable, BadConfig.
"""

import os
import socket
import stat
from pathlib import Path

from polyvol.daemon.errors import BadConfig, SocketUnusable

PATH_BYTES_MAX = 107
"""The kernel's limit for a unix socket's path."""
_BACKLOG = 4096


def bind_unix(path: Path) -> socket.socket:
    """A listening unix socket at the path, mode 0600, not inherited by child processes."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise SocketUnusable(address=path, why=f"the path is longer than {PATH_BYTES_MAX} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)
        _remove_stale(path)
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketUnusable(address=path, why=error.strerror or error) from error
    except BaseException:
        listener.close()
        raise
    return listener


def bind_tcp(address: str) -> list[socket.socket]:
    """Listening sockets for HOST:PORT, one for each address that HOST has; empty: every interface."""
    host, port = split_address(address)
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        for family, kind, protocol, _, target in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(target)
            listener.listen(_BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise SocketUnusable(address=address, why=error.strerror or error) from error
    return listeners


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of 'HOST:PORT' or '[IPv6]:PORT'; else BadConfig."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = colon and (bracketed or ":" not in host)
    if not well_formed or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadConfig(where="nbd-listen", why=f"{address!r} is not HOST:PORT (for IPv6: [ADDRESS]:PORT)")
    return host[1:-1] if bracketed else host, int(port)


def nbd_uri(listener: socket.socket) -> str:
    """The NBD URI of what a listening socket serves, without an export name."""
    if listener.family == socket.AF_UNIX:
        return f"nbd+unix:///?socket={listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"nbd://[{host}]:{port}" if ":" in host else f"nbd://{host}:{port}"


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketUnusable(address=path, why="there is something that is not a socket")
    except FileNotFoundError:
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
    raise SocketUnusable(address=path, why="somebody else listens there already")
