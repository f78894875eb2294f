"""The verbs: attach, detach, list, as the command line gives them.

How it works      Where systemd runs and has the unit, attaching means to remember how, and to start and
                  enable the unit, which does it (watch.py). Elsewhere it is done here, once: nothing then
                  connects it again or brings it back at boot.
Errors            errors.py; nothing that an attach that fails had begun is left.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from polyvol.daemon.client.attach import disks, fuse, handshake, nbd_device, states, units
from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.disks import path_of
from polyvol.daemon.client.attach.errors import (
    AlreadyAttached,
    AttachedInUse,
    DeviceDead,
    KernelRefused,
    NeedsRoot,
    NoNbdModule,
    NotAttached,
    NotWritten,
    ServerUnreachable,
)
from polyvol.daemon.client.attach.records import Attached, Places, Wanted
from polyvol.daemon.client.attach.users import users_of
from polyvol.mapping.errors import PolyvolError

LOOKS_AT_ONCE = 16
_log = logging.getLogger("polyvol.attach")


@dataclass(frozen=True, kw_only=True)
class AttachedView:
    """What is or should be attached. `device`: None when it is not; `size` in bytes; `boot`: whether it is
    attached again at the next boot; `use`: who uses it, as a clause. `state`, and `trouble`, which is what is
    wrong and what to do about it as a sentence: states.py has them."""

    name: str
    device: str | None
    link: str | None
    state: str
    trouble: str | None
    kind: str
    size: int | None
    read_only: bool | None
    connections: int | None
    uri: str | None
    boot: bool
    use: str | None


def find(places: Places, name: str) -> Attached | None:
    """What is attached by this name, or None."""
    return nbd_device.find(places, name) or fuse.find(places, name)


def attach(places: Places, wanted: Wanted) -> tuple[Path, bool]:
    """Attach it; the device's path, and whether a unit supervises it."""
    _root("attaching")
    with places.lock(wanted.name, "command"):
        return _attach(places, wanted)


def _attach(places: Places, wanted: Wanted) -> tuple[Path, bool]:
    there = find(places, wanted.name)
    if there is not None:
        why = fuse.trouble(places, there)
        if why is None:
            raise AlreadyAttached(name=wanted.name, device=f"/dev/{there.device}")
        uses = users_of(there.device)
        if uses:
            device = f"/dev/{there.device}"
            raise DeviceDead(name=wanted.name, device=device, why=why, use=" and ".join(uses))
        _end(places, wanted.name, force=True)
    if wanted.kind == "nbd" and not disks.load_nbd():
        raise NoNbdModule()
    if not units.available():
        with places.lock(wanted.name, "device"):
            return _attach_once(places, wanted), False
    places.write(wanted)
    try:
        units.start(wanted.name)
        now = find(places, wanted.name)
        if now is None:
            raise KernelRefused(what="it", why="it is gone again")
    except BaseException:
        places.forget(Wanted, wanted.name)
        raise
    return path_of(places, now), True


@dataclass(frozen=True, kw_only=True)
class Detached:
    """What was detached: `device` such as 'loop0', `uses`: who still used it (with `force`), a clause each;
    `dead`: why it did no I/O any more and could not be asked to flush, a clause."""

    name: str
    device: str | None
    uses: list[str]
    dead: str | None


def detach(places: Places, text: str, *, force: bool) -> Detached:
    """Detach what a name, a link or a device stands for, and do not attach it at the next boot. Without
    `force`, a device that cannot be ended without losing anything stays as it was: AttachedInUse, NotWritten.
    """
    _root("detaching")
    name = name_of(places, text)
    with places.lock(name, "command"):
        return _detach(places, name, force=force)


def _detach(places: Places, name: str, *, force: bool) -> Detached:
    if name not in _names(places):
        raise NotAttached(name=name)  # another command has just detached it
    now = find(places, name)
    uses = [] if now is None else users_of(now.device)
    dead = None if now is None else fuse.trouble(places, now)
    if now is not None and not force:
        _refuse_used(places, now, uses)
        _refuse_unwritten(places, now, dead=dead is not None)
    try:
        _end(places, name, force=force)
    except PolyvolError:
        if units.available():  # it is supervised again
            try:
                units.start(name)
            except PolyvolError as error:
                _log.warning("%s stays attached, and nothing supervises it any more: %s", name, error)
        raise
    places.forget(Wanted, name)
    places.forget(Attached, name)
    return Detached(name=name, device=None if now is None else now.device, uses=uses, dead=dead)


def _refuse_unwritten(places: Places, now: Attached, *, dead: bool) -> None:
    """NotWritten if something that was written to a device is not on its volume. The kernel tells of a write
    that has failed once: so that is recorded, and every later command says it too."""
    if now.lost is not None:
        raise NotWritten(name=now.name, device=f"/dev/{now.device}", why=now.lost)
    try:
        with disks.written_out(now.name, now.device, flush=not dead):
            pass
    except NotWritten as error:
        places.write(replace(now, lost=str(error.facts["why"])))
        raise


def _end(places: Places, name: str, *, force: bool) -> None:
    """End a device, by its unit if it has one."""
    looked_after = units.available() and units.active(name)
    if units.available():
        units.stop(name)
    with places.lock(name, "device"):
        _end_device(places, name, force=force, looked_after=looked_after)


def _end_device(places: Places, name: str, *, force: bool, looked_after: bool) -> None:
    now = find(places, name)
    if now is None:
        if fuse.left(places, name):
            fuse.clean(places, name)
        return
    if not force:
        _refuse_used(places, now, users_of(now.device))  # it may be in use by now
        if looked_after:
            use = f"not ended by its unit, and `journalctl -u {units.unit(name)}` says why"
            raise AttachedInUse(name=name, device=f"/dev/{now.device}", use=use)
    if now.kind == "fuse":
        fuse.detach(places, now, force=force)
        return
    from polyvol.daemon.client.attach.netlink import Kernel  # its library takes its time to load

    with Kernel() as channel:
        nbd_device.detach(channel, places, now, force=force)


def list_all(places: Places, *, ask: bool = True) -> list[AttachedView]:
    """Everything that is attached, or should be. `ask`: whether servers are asked for their exports."""
    names = sorted(_names(places))
    with ThreadPoolExecutor(max_workers=LOOKS_AT_ONCE) as pool:  # a server that hangs delays its own alone
        return list(pool.map(_view, repeat(places), names, repeat(ask)))


def _names(places: Places) -> set[str]:
    """The names of everything that is attached, should be, or was left by a command that was killed."""
    return {*places.names(), *disks.attached_nbd()}


def name_of(places: Places, text: str) -> str:
    """The name that a name, '/dev/nbdN' or '/dev/polyvol/NAME' stands for; NotAttached if none."""
    names = _names(places)
    if text in names:
        return text
    device = Path(os.path.realpath(text)).name if text.startswith("/") else text
    for name in sorted(names):
        now = find(places, name)
        if now is not None and (now.device == device or text == str(places.link(name))):
            return name
    places.sweep()
    raise NotAttached(name=text)


def _refuse_used(places: Places, now: Attached, uses: list[str]) -> None:
    """AttachedInUse if a device cannot be ended without losing anything. One over nbdfuse that is dead has no
    server to be asked. The server of any other is asked first, because a flush waits for it without end."""
    uri = states.uri_of(places, now, places.wanted(now.name))
    if not uses and uri is not None and fuse.trouble(places, now) is None:
        try:
            handshake.look(parse_uri(uri, now.name), handshake.LOOK_S)
        except PolyvolError as error:
            if now.kind == "nbd" or isinstance(error, ServerUnreachable):
                uses = ["without its daemon, and so cannot write what is not written yet"]
    if uses:
        raise AttachedInUse(name=now.name, device=f"/dev/{now.device}", use=" and ".join(uses))


def _attach_once(places: Places, wanted: Wanted) -> Path:
    if wanted.kind == "fuse":
        return fuse.attach(places, wanted)[1]
    from polyvol.daemon.client.attach.netlink import Kernel

    with Kernel() as channel:
        return nbd_device.attach(channel, places, wanted)[1]


def _view(places: Places, name: str, ask: bool) -> AttachedView:
    wanted, now = places.wanted(name), find(places, name)
    state, trouble = states.state_of(places, name, now, ask=ask)
    path = None if now is None else path_of(places, now)
    return AttachedView(
        name=name,
        device=None if now is None else f"/dev/{now.device}",
        link=str(path) if path is not None and path.parent != disks.DEV else None,
        state=state,
        trouble=trouble,
        kind=now.kind if now is not None else wanted.kind if wanted is not None else "nbd",
        size=None if now is None else disks.size_of(now.device),
        read_only=None if now is None else disks.read_only(now.device),
        connections=None if wanted is None else wanted.connections,
        uri=states.uri_of(places, now, wanted),
        boot=wanted is not None,
        use=None if now is None else " and ".join(users_of(now.device, patience_s=0)) or None,
    )


def _root(what: str) -> None:
    if os.geteuid() != 0:
        raise NeedsRoot(what=what)
