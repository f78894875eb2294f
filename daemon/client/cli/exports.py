"""The daemon's exports, for commands that transfer contents: over NBD, as any other client.

How it works      A name is looked up before the connection to its export is made, and again after it.
                  polyvold does not delete a snapshot that a client is connected to, or compares with, so from
                  then on the name cannot change its meaning. If the answers differ, it changed before.
Errors            SnapshotReplaced, TransferFailed, WrongOption.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from polyvol.daemon.backup_errors import TransferFailed, WrongOption
from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.daemon.errors import SnapshotReplaced, SnapshotWasDeleted
from polyvol.mapping.sizes import exact_size


@dataclass(frozen=True)
class Opened:
    """A snapshot's export, and the daemon's views of the snapshot, of the older one that it is compared with,
    and of their volume."""

    export: NbdExport
    newer: Json
    older: Json | None
    volume: Json


def open_export(client: Client, export: str, name: str, *, since: str | None = None) -> NbdExport:
    """An export of the daemon, called `name` in sentences, on its unix socket if it has one; compared with
    snapshot `since`."""
    addresses = client.get("status")["daemon"]["nbd"]
    if not addresses:
        raise TransferFailed(what=f"reading {name}", why="polyvold serves no NBD")
    addresses.sort(key=lambda address: not address.startswith("nbd+unix:"))
    return NbdExport(parse_uri(addresses[0], export).uri, name, since=since)


@contextmanager
def opened_snapshot(client: Client, volume: str, name: str, since: str | None = None) -> Iterator[Opened]:
    """A snapshot's export, compared with snapshot `since`. What was read is of these snapshots if
    `check_first` of the export says so after it."""
    before = _look_up(client, volume, name, since)
    for each in before:
        if each is not None and each["deleted"]:
            raise SnapshotWasDeleted(name=each["export"])
    full_name = f"{volume}@{name}"
    export = open_export(client, full_name, full_name, since=since)
    try:
        newer, older = _look_up(client, volume, name, since)
        for was, now in zip(before, (newer, older), strict=True):
            if was is not None and now is not None and was["uuid"] != now["uuid"]:
                raise SnapshotReplaced(name=now["export"])
        if newer["size"] != export.size:
            why = f"its export has {exact_size(export.size)}, not {exact_size(newer['size'])}"
            raise TransferFailed(what=f"reading {full_name}", why=why)
        yield Opened(export, newer, older, client.get("volumes", volume))
    finally:
        export.close()


def identity(snapshot: Json) -> UUID:
    """The UUID of a snapshot's contents: its own, or that of the one that it is a copy of."""
    return UUID(snapshot["copy_of"] or snapshot["uuid"])


def _look_up(client: Client, volume: str, name: str, since: str | None) -> tuple[Json, Json | None]:
    newer = client.get("volumes", volume, "snapshots", name)
    if since is None:
        return newer, None
    older = client.get("volumes", volume, "snapshots", since)
    if older["epoch"] >= newer["epoch"]:
        raise WrongOption(
            what=f"--since takes an older snapshot, and {volume}@{since} is not older than {newer['export']}",
            todo=f"name an older one; `polyvol snapshot list {volume}` shows them in order",
        )
    return newer, older
