"""polyvol in-use: who would lose data if polyvol was removed from this host.

How it works      It shows devices that are attached and used here (daemon/client/attach/users.py), running
                  restores, and clients of this host's daemon, on any host, except unused devices attached
                  here: their units end those in order. It also works without a running daemon, because then
                  there are no clients. The package's `prerm` and scripts/uninstall call it
                  (scripts/activate.sh).
Errors            EXIT_CODE if something is in use, or if a running daemon does not answer. NeedsRoot: only
                  root can see the open files of other users.
"""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.errors import NeedsRoot
from polyvol.daemon.client.attach.records import Places
from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.common import json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.client.cli.unreachable import may_run
from polyvol.daemon.errors import EXIT_CODE, DaemonNotRunning, DaemonUnreachable
from polyvol.daemon.state.directory import nbd_socket


@dataclass(frozen=True, kw_only=True)
class InUse:
    """An object that is in use: a sentence, and what to do."""

    what: str
    cure: str


@click.command(name="in-use", cls=Verb)
@json_option
@state_dir_option
def in_use(as_json: bool, state_dir: Path) -> None:
    """Show what uses volumes, on this host and on others. Exit status 1 if anything does."""
    found = [*_devices(Places.default()), *_clients(Places.default(), state_dir)]
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    else:
        for each in found:
            say(f"{each.what}; {each.cure}")
    if found:
        sys.exit(EXIT_CODE)


def _devices(places: Places) -> list[InUse]:
    """The attached devices that are in use, or that no unit ends."""
    from polyvol.daemon.client.attach import verbs  # loads netlink and udev: only where they are used

    views = verbs.list_all(places, ask=False)
    if any(view.device is not None for view in views) and os.geteuid() != 0:
        raise NeedsRoot(what="telling who uses attached devices")
    found = []
    for view in views:
        if view.use is not None:
            cure = f"end that, then `polyvol detach {view.name}`"
            found.append(InUse(what=f"{view.name} ({view.device}) is {view.use}", cure=cure))
        elif view.device is not None and places.wanted(view.name) is None:
            what = f"{view.name} ({view.device}) is attached, and has no unit that would detach it"
            found.append(InUse(what=what, cure=f"`polyvol detach {view.name}`"))
    return found


def _clients(places: Places, state_dir: Path) -> list[InUse]:
    """The daemon's clients, except unused devices of this host."""
    if not may_run(state_dir):
        return []
    try:
        volumes = Client(state_dir).get("volumes")
    except DaemonNotRunning:
        return []
    except DaemonUnreachable as error:
        unknown = f"whether clients are connected is not known: {error.message}"
        return [InUse(what=unknown, cure=error.advice)]
    ours = _attached_here(places, state_dir)
    found = [
        InUse(
            what=f"volume {volume['name']} is being restored by a `polyvol restore` that runs",
            cure="wait until it has ended, or end it",
        )
        for volume in volumes
        if (volume.get("restore") or {}).get("connections")
    ]
    for export in (export for volume in volumes for export in volume["exports"]):
        clients = export["connections"] - ours.get(export["name"], 0)
        if clients > 0:
            are = "connection is" if clients == 1 else "connections are"
            found.append(
                InUse(
                    what=f"{clients} NBD {are} open to {export['name']}",
                    cure="`polyvol client list` shows these clients; disconnect them on their hosts",
                )
            )
    return found


def _attached_here(places: Places, state_dir: Path) -> dict[str, int]:
    """The maximum number of connections to each export of this daemon by attached devices of this host."""
    found: dict[str, int] = {}
    for name in places.names():
        wanted = places.wanted(name)
        if wanted is None or places.now(name) is None:
            continue
        address = parse_uri(wanted.uri, name)
        if address.socket is not None and address.socket.resolve() == nbd_socket(state_dir).resolve():
            found[address.export] = found.get(address.export, 0) + wanted.connections
    return found
