"""Listening sockets: the NBD sockets and the control socket, bound before anything else happens.

How it works      A unix socket gets its mode 0600 before it is bound (Linux takes it from the socket), so
                  that it never has another; a stale one in its place is removed, one that somebody answers on
                  is not. Under systemd the sockets may be there already: socket units hold them, each with a
                  name (FileDescriptorName) that says what it is for, and clients wait in their backlog while
                  no polyvold runs. A socket without such a name is recognized by its address. The previous
                  process's connections (hand_over.py) arrive the same way.
Owner and locks   A process that bound a socket removes its path at the end; passed sockets stay systemd's.
Errors            SocketUnusable, BadConfig.
"""

import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from polyvol.daemon.errors import BadConfig, SocketUnusable
from polyvol.daemon.host.notify import is_number
from polyvol.mapping.errors import StateFull
from polyvol.mapping.no_space import NEEDED, is_no_space
from polyvol.mapping.os_errors import reason

PATH_BYTES_MAX = 107
"""The kernel's limit for a unix socket's path."""
HANDED_FILE = "hand-over"
HANDED_CONNECTION = "connection-"
HANDED_DEVICE = "device-"
"""Names of what one process hands to the next: a device's has its UUID."""
BACKLOG = 4096
_FIRST_PASSED = 3
"""The first file descriptor that systemd passes."""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_IP_FREEBIND = 15
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)
"""A client whose machine vanished is disconnected after 60 s; accepted sockets have these
options from their listener. The user time-out (milliseconds) is for data that is not acknowledged."""
_DIGITS = 10
_log = logging.getLogger("polyvol")


@dataclass(frozen=True, slots=True)
class InheritedSockets:
    """The listening sockets that systemd made for this process; without it there are none."""

    control: socket.socket | None = None
    nbd: list[socket.socket] = field(default_factory=list)
    handed: dict[str, int] = field(default_factory=dict)
    """What the process before has handed over: descriptors, by name."""
    devices: dict[str, int] = field(default_factory=dict)
    """The devices that it has held: descriptors, by the device's UUID."""
    lock: int | None = None
    """The lock of the state directory, which polyvold has taken for the nbdkit that it has started."""

    def close(self) -> None:
        """Close the descriptors that nothing uses."""
        for descriptors in (self.handed, self.devices):
            while descriptors:
                os.close(descriptors.popitem()[1])
        for listener in (self.control, *self.nbd):
            if listener is not None:
                listener.close()


def inherited_from_systemd(control_path: Path | None = None) -> InheritedSockets:
    """Take what socket activation passes ($LISTEN_PID, $LISTEN_FDS, $LISTEN_FDNAMES); not to be called twice.

    A socket that has no name, or one that means nothing here, is recognized by its address: `control_path`,
    or NBD. What is no listening stream socket then is closed. SocketUnusable when a socket named nbd or
    control is not what its name says, or there are two for control."""
    told = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    count = told["LISTEN_FDS"]
    if told["LISTEN_PID"] != str(os.getpid()) or not is_number(count) or len(count) >= _DIGITS:
        return InheritedSockets()
    numbers = range(_FIRST_PASSED, _FIRST_PASSED + int(count))
    names = chain(told["LISTEN_FDNAMES"].split(":"), repeat(""))
    by_name: dict[str, list[socket.socket]] = {"control": [], "nbd": []}
    handed: dict[str, int] = {}
    devices: dict[str, int] = {}
    for number, name in zip(numbers, names, strict=False):
        try:
            os.set_inheritable(number, False)
        except OSError as error:
            why = f"systemd passes {len(numbers)} descriptors, and number {number} is not open"
            raise SocketUnusable(address=name or f"descriptor {number}", why=why) from error
        if name == HANDED_FILE or name.startswith(HANDED_CONNECTION):
            handed[name] = number
        elif name.startswith(HANDED_DEVICE):
            devices[name.removeprefix(HANDED_DEVICE)] = number
        elif name in by_name:
            by_name[name].append(_named(number, name))
        else:
            _take_unnamed(number, name, by_name, control_path)
    if len(by_name["control"]) > 1:
        raise SocketUnusable(address="control", why="systemd passes more than one socket of this name")
    return InheritedSockets(next(iter(by_name["control"]), None), by_name["nbd"], handed, devices)


def _named(number: int, name: str) -> socket.socket:
    listener = _listening(number)
    if listener is None:
        raise SocketUnusable(address=name, why="systemd passes what is no listening unix or TCP socket")
    if name == "control" and listener.family != socket.AF_UNIX:
        listener.close()
        raise SocketUnusable(address=name, why="systemd passes a socket of the network, open to everybody")
    return listener


def _take_unnamed(
    number: int, name: str, by_name: dict[str, list[socket.socket]], control_path: Path | None
) -> None:
    """Determine by its address what a socket is for, or close it."""
    listener = _listening(number)
    if listener is None:
        os.close(number)
        _log.warning("what systemd passes as %r is not used: it is no listening unix or TCP socket", name)
        return
    at = listener.getsockname()
    is_control = listener.family == socket.AF_UNIX and at == str(control_path)
    if is_control and by_name["control"]:
        listener.close()
        return
    what = "control" if is_control else "nbd"
    by_name[what].append(listener)
    _log.info("systemd passes %s without the name (FileDescriptorName) %s", at, what)


def _listening(number: int) -> socket.socket | None:
    """A descriptor as a listening stream socket of a family that is served; None, and the descriptor stays
    open, if it is none."""
    try:
        listener = socket.socket(fileno=number)
    except OSError:
        return None
    listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listens and listener.type == socket.SOCK_STREAM and listener.family in _FAMILIES:
        _keep_alive(listener)
        return listener
    listener.detach()
    return None


def bind_unix(path: Path) -> socket.socket:
    """A listening unix socket at the path, mode 0600, not inherited by child processes."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise SocketUnusable(address=path, why=f"the path is longer than {PATH_BYTES_MAX} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)
        _remove_stale(path)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if is_no_space(error):
            what = f"the socket {path.name} cannot be made"
            raise StateFull(path=path.parent, what=what, need=NEEDED) from error
        raise SocketUnusable(address=path, why=reason(error, path)) from error
    except BaseException:
        listener.close()
        raise
    return listener


def bind_tcp(address: str) -> list[socket.socket]:
    """Listening sockets for HOST:PORT, one for each address that HOST has; empty: every interface.

    Addresses of HOST that this machine does not have (localhost is ::1 too, where IPv6 is off) are left out,
    unless it has none of them. An IP address that it does not have yet is listened on all the same: it
    works as soon as an interface has it."""
    host, port = split_address(address)
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        missing: OSError | None = None
        for family, kind, protocol, _, target in dict.fromkeys(found):
            try:
                listeners.append(_listen_tcp(family, kind, protocol, target))
            except OSError as error:
                if error.errno not in _NO_ADDRESS:
                    raise
                missing = error
        if not listeners and missing is not None:
            if not _is_ip(host) or missing.errno != errno.EADDRNOTAVAIL:
                raise missing
            family, kind, protocol, _, target = found[0]
            listeners.append(_listen_tcp(family, kind, protocol, target, free=True))
            _log.warning("no interface has %s: it is listened on, and can be reached when one has it", host)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label is empty, too long, or no text
        for listener in listeners:
            listener.close()
        why = reason(error) if isinstance(error, OSError) else "no host can have that name"
        raise SocketUnusable(address=address, why=why) from error
    return listeners


def _listen_tcp(family: int, kind: int, protocol: int, target: Any, *, free: bool = False) -> socket.socket:  # noqa: ANN401
    """A listening socket. `free`: also at an address that this machine does not have."""
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if free:
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind(target)
        _keep_alive(listener)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _keep_alive(listener: socket.socket) -> None:
    if listener.family != socket.AF_UNIX:
        for level, option, value in _KEEP_ALIVE:
            listener.setsockopt(level, option, value)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of 'HOST:PORT' or '[IPv6]:PORT'; else BadConfig."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = colon and (bracketed or ":" not in host)
    if not well_formed or not port.isascii() or not port.isdigit():
        raise BadConfig(where="nbd-listen", why=f"{address!r} is not HOST:PORT (for IPv6: [ADDRESS]:PORT)")
    if len(port) > 5 or int(port) > 65535:
        raise BadConfig(where="nbd-listen", why=f"a port is at most 65535, and that of {address!r} is more")
    return host[1:-1] if bracketed else host, int(port)


def nbd_uri(listener: socket.socket) -> str:
    """The NBD URI of what a listening socket serves, without an export name."""
    if listener.family == socket.AF_UNIX:
        at = listener.getsockname()
        if isinstance(at, bytes):  # an abstract one, as systemd and ss write it
            at = f"@{at[1:].decode('utf-8', 'replace')}"
        return f"nbd+unix:///?socket={at}"
    host, port = listener.getsockname()[:2]
    return f"nbd://[{host}]:{port}" if ":" in host else f"nbd://{host}:{port}"


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. SocketUnusable if somebody does, or it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketUnusable(address=path, why="there is something that is not a socket")
    except FileNotFoundError:
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.setblocking(False)  # else it waits for as long as the backlog is full
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError as error:
            why = "another process listens there, and accepts no connections; end it, or remove the socket"
            raise SocketUnusable(address=path, why=why) from error
    raise SocketUnusable(address=path, why="somebody else listens there already")
