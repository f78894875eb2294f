"""The state of an attachment: does its device exist, does it do I/O, and is its export still the same.

How it works      The state of this host comes first: a device over nbdfuse whose process has ended, or whose
                  connections the server has closed, is dead. Then the server is asked for the export, as a
                  new connection would ask: the kernel does not report whether its own NBD client has a
                  connection.
                  States: attached; no server (no answer, or not in time); no export (the server
                  does not serve it, or serves another one by that name); dead; not attached.
Errors            RecordUnusable. A missing answer of a server is shown as the trouble.
"""

import contextlib

from polyvol.daemon.client.attach import fuse, handshake, nbd_device, units
from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.errors import AnotherExport, ExportRefused
from polyvol.daemon.client.attach.records import Attached, Places, Wanted
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.sizes import exact_size

LIST_LOOK_S = 1.0
"""How long a list waits for a server."""
State = tuple[str, str | None]
"""A state, and what is wrong and what to do about it, as a sentence."""


def uri_of(places: Places, now: Attached | None, wanted: Wanted | None) -> str | None:
    """Where the export of a name is, as far as that is known."""
    if now is not None:
        uri = now.uri or (fuse.uri_of(places, now.name) if now.kind == "fuse" else None)
        if uri is not None:
            return uri
    return None if wanted is None else wanted.uri


def state_of(places: Places, name: str, now: Attached | None, *, ask: bool = True) -> State:
    """The state of a name. `ask`: whether its server is asked, which takes up to LIST_LOOK_S seconds."""
    if now is None:
        if not fuse.left(places, name):
            return "not attached", None
        return "dead", f"a command that was killed has left it; `polyvol detach {name}` cleans up"
    why = fuse.trouble(places, now)
    if why is not None:
        return "dead", f"{why}, so its I/O fails; end what uses it, then attach it again"
    wanted = places.wanted(name)
    uri = uri_of(places, now, wanted)
    state: State = "attached", None
    if ask and uri is not None:
        state = _asked(uri, now, wanted)
    return state if state[1] is not None else (state[0], _left_alone(name, now, wanted))


def _asked(uri: str, now: Attached, wanted: Wanted | None) -> State:
    """The state of a device that does I/O, by its server's answer about its export."""
    try:
        address = parse_uri(uri, now.name)
        size = nbd_device.same_export(address, now, handshake.look(address, LIST_LOOK_S)).size
    except (AnotherExport, ExportRefused) as error:
        return "no export", f"{error.message}, so its I/O fails; end what uses it, then detach it"
    except PolyvolError as error:
        limit = "" if wanted is None or now.kind == "fuse" else f", for {wanted.dead_timeout_s} s at most"
        return "no server", f"{error.message}; its I/O waits until one does{limit}"
    if size > now.size and now.kind == "fuse":  # the kernel's client can grow
        cure = f"to see that, detach {now.name} and attach it again"
        return "attached", f"its export has grown to {exact_size(size)}; {cure}"
    return "attached", None


def _left_alone(name: str, now: Attached, wanted: Wanted | None) -> str | None:
    """The note that a device has a unit to reconnect it, which does not run."""
    if now.kind == "fuse" or wanted is None:
        return None
    with contextlib.suppress(PolyvolError):
        if units.available() and not units.active(name):
            unit = units.unit(name)
            return f"its unit does not run, and nothing else connects it again; `systemctl start {unit}` does"
    return None
