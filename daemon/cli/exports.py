"""The daemon's exports, for commands that move contents: by NBD, as any other client."""

from uuid import UUID

from polyvol.daemon.attach.address import parse_uri
from polyvol.daemon.cli.client import Client, Json
from polyvol.daemon.transfer.client import NbdExport
from polyvol.daemon.transfer.errors import TransferFailed
from polyvol.mapping.errors import UnknownSnapshot


def open_export(client: Client, name: str, *, since: str | None = None) -> NbdExport:
    """The daemon's export of this name, on its unix socket if it has one; compared with snapshot `since`."""
    addresses = client.get("status")["daemon"]["nbd"]
    if not addresses:
        raise TransferFailed(what=f"reading {name}", why="polyvold serves no NBD")
    addresses.sort(key=lambda address: not address.startswith("nbd+unix:"))
    return NbdExport(parse_uri(addresses[0], name).uri, name, since=since)


def identity(snapshot: Json) -> UUID:
    """The UUID of a snapshot's contents: its own, or that of the one that it is a copy of."""
    return UUID(snapshot["copy_of"] or snapshot["uuid"])


def snapshot_of(client: Client, volume: str, name: str) -> Json:
    """A snapshot of a volume."""
    return client.get("volumes", volume, "snapshots", name)


def older_snapshot(client: Client, volume: str, newer: Json, name: str) -> Json:
    """A snapshot of a volume that is older than another one."""
    older = snapshot_of(client, volume, name)
    if older["epoch"] >= newer["epoch"]:
        raise UnknownSnapshot(volume=f"{volume} older than {newer['name']}", name=name)
    return older
