"""Clients: who is connected to which export, and the end of a connection.

How it works      The engine knows the connections of its own NBD server. If nbdkit serves NBD, the plugin
                  registers each connection here, with its handle and a function that shuts its socket down.
                  Disconnecting a client shuts its socket down; a handle is closed too, so that the export is
                  free although nbdkit may still have the connection. nbdkit's sockets can be
                  shut down only while nbdkit waits for the client: a thread of this process tries that until
                  the connection has ended.
                  The export of a restore is shown by its volume's name, because the export's name is secret.
Owner and locks   `_lock` covers `_inside`; nothing is called while it is held.
Errors            UnknownClient, UnknownExport.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from polyvol.daemon.context import Context
from polyvol.daemon.engine_border import HandleLike
from polyvol.daemon.errors import UnknownClient, UnknownExport
from polyvol.daemon.host.accounts import user_name
from polyvol.daemon.restores.verbs import HIDDEN
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.clients import ClientView

ShutDown = Callable[[], bool]
"""Shuts a connection's socket down if that can be done now; whether it did."""
END_TIMEOUT_S = 4.0
"""How long a call waits for the end of a connection, which may come later."""
END_POLL_S = 0.01
LATE_POLL_S = 0.5
"""How often it is tried to shut a socket down: while a call waits for it, and after that."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection: its address on the network, or the local process that has connected."""

    address: str | None = None
    pid: int | None = None
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class _Inside:
    """A connection of another NBD server in this process. `gone`: it has ended."""

    export: str
    handle: HandleLike
    peer: Peer
    since_ns: int
    shut_down: ShutDown
    gone: threading.Event = field(default_factory=threading.Event)


class Clients:
    """The verbs of clients."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._inside: dict[int, _Inside] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    def list_all(self, export: str | None = None) -> list[ClientView]:
        """All connections, by id, or those to one export; UnknownExport if it does not exist."""
        if export is not None and export not in self._names():
            raise UnknownExport(name=export)
        shown = [
            _view(each["number"], each["export"], each["read_only"], each["since_ns"], peer, traffic)
            for each in self._context.engine.clients()
            for peer in (Peer(each["address"], each["pid"], each["uid"]),)
            for traffic in ((each["in_flight"], each["received"], each["sent"]),)
        ]
        with self._lock:
            inside = list(self._inside.items())
        for number, one in inside:
            with suppress(OSError):  # it may be closed by now
                read_only, traffic = one.handle.read_only, one.handle.traffic()
                shown.append(_view(number, one.export, read_only, one.since_ns, one.peer, traffic))
        return [view for view in shown if export is None or view.export == export]

    def disconnect(self, text: str) -> ClientView:
        """End a connection; its state before."""
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
        view = next((view for view in self.list_all() if view.id == number), None)
        if view is None or not (self._end_inside(number) or self._context.engine.disconnect_client(number)):
            raise UnknownClient(id=text)
        what = f"client {number} ({view.peer}) of {view.export} was disconnected"
        self._context.events.add("info", what, EXPORT=view.export)
        return view

    def came(self, export: str, handle: HandleLike, peer: Peer, shut_down: ShutDown) -> int:
        """Register a connection of another NBD server in this process; its id."""
        with self._lock:
            number = next(self._numbers)
            self._inside[number] = _Inside(export, handle, peer, self._context.clock(), shut_down)
        return number

    def left(self, number: int) -> None:
        """Remove a connection that has ended."""
        with self._lock:
            one = self._inside.pop(number, None)
        if one is not None:
            one.gone.set()

    def _names(self) -> set[str]:
        return {each["name"].partition(HIDDEN)[0] for each in self._context.engine.exports()}

    def _end_inside(self, number: int) -> bool:
        with self._lock:
            one = self._inside.get(number)
            if one is None:
                return False
        one.handle.close()  # its requests are refused from now on
        threading.Thread(target=_shut_down, args=(one,), name="polyvol-disconnect", daemon=True).start()
        one.gone.wait(END_TIMEOUT_S)
        return True


def _shut_down(one: _Inside) -> None:
    """Shut a connection's socket down, again and again until the connection has ended."""
    late = time.monotonic() + END_TIMEOUT_S
    while not one.gone.wait(END_POLL_S if time.monotonic() < late else LATE_POLL_S):
        one.shut_down()


def _view(
    number: int, export: str, read_only: bool, since_ns: int, peer: Peer, traffic: tuple[int, int, int]
) -> ClientView:
    name, hidden, _ = export.partition(HIDDEN)
    user = None if peer.uid is None else user_name(peer.uid)
    if peer.address is not None:
        where = peer.address
    elif user is not None:
        where = f"{user}, pid {'unknown' if peer.pid is None else peer.pid}"
    else:
        where = "unknown"
    in_flight, received, sent = traffic
    return ClientView(
        id=number,
        export=name,
        restore=bool(hidden),
        read_only=read_only,
        peer=where,
        address=peer.address,
        pid=peer.pid,
        user=user,
        since=iso(since_ns),
        in_flight=in_flight,
        received=received,
        sent=sent,
    )
