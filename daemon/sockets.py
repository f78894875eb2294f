"""Listening sockets: the NBD sockets and the control socket, bound before anything else happens.

How it works      A unix socket gets its mode 0600 before it is bound (Linux takes it from the socket), so
                  that it never has another; a stale one in its place is removed, one that somebody answers on
                  is not. Under systemd the sockets may be there already: socket units hold them, each with a
                  name (FileDescriptorName) that says what it is for, and clients wait in their backlog while
                  no polyvold runs. What the process before has handed over (hand_over.py) comes the same way.
Owner and locks   Who bound a socket removes its path at the end; what was passed stays systemd's.
Errors            SocketUnusable, BadConfig.
"""

import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from polyvol.daemon.errors import BadConfig, SocketUnusable

PATH_BYTES_MAX = 107
"""The kernel's limit for a unix socket's path."""
HANDED_FILE = "hand-over"
HANDED_CONNECTION = "connection-"
HANDED_DEVICE = "device-"
"""Names of what one process hands to the next: a device's has its UUID."""
_BACKLOG = 4096
_FIRST_PASSED = 3
"""The first file descriptor that systemd passes."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The listening sockets that systemd made for this process; without it there are none."""

    control: socket.socket | None = None
    nbd: list[socket.socket] = field(default_factory=list)
    handed: dict[str, int] = field(default_factory=dict)
    """What the process before has handed over: descriptors, by name."""
    devices: dict[str, int] = field(default_factory=dict)
    """The devices that it has held: descriptors, by the device's UUID."""

    def close(self) -> None:
        """Close what nobody took."""
        for descriptors in (self.handed, self.devices):
            while descriptors:
                os.close(descriptors.popitem()[1])
        for listener in (self.control, *self.nbd):
            if listener is not None:
                listener.close()


def passed_by_systemd() -> Passed:
    """Take what socket activation passes ($LISTEN_PID, $LISTEN_FDS, $LISTEN_FDNAMES); not to be called twice.

    SocketUnusable when a socket has a name that means nothing here, or does not listen for streams."""
    told = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if told["LISTEN_PID"] != str(os.getpid()) or not told["LISTEN_FDS"].isdigit():
        return Passed()
    count = int(told["LISTEN_FDS"])
    names = told["LISTEN_FDNAMES"].split(":") if told["LISTEN_FDNAMES"] else []
    by_name: dict[str, list[socket.socket]] = {"control": [], "nbd": []}
    handed: dict[str, int] = {}
    devices: dict[str, int] = {}
    for number, name in zip(range(_FIRST_PASSED, _FIRST_PASSED + count), names, strict=False):
        os.set_inheritable(number, False)
        if name == HANDED_FILE or name.startswith(HANDED_CONNECTION):
            handed[name] = number
            continue
        if name.startswith(HANDED_DEVICE):
            devices[name.removeprefix(HANDED_DEVICE)] = number
            continue
        if name not in by_name:
            why = "systemd passes it, and its FileDescriptorName is neither nbd nor control"
            raise SocketUnusable(address=name, why=why)
        by_name[name].append(_listening(number, name))
    if len(names) != count or len(by_name["control"]) > 1:
        why = f"systemd passes {count} sockets, named {' '.join(names) or 'not at all'}"
        raise SocketUnusable(address="control", why=why)
    return Passed(next(iter(by_name["control"]), None), by_name["nbd"], handed, devices)


def _listening(number: int, name: str) -> socket.socket:
    try:
        listener = socket.socket(fileno=number)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketUnusable(address=name, why=error.strerror or error) from error
    if not listens or listener.type != socket.SOCK_STREAM:
        listener.close()
        raise SocketUnusable(address=name, why="systemd passes a socket that does not listen for streams")
    return listener


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
