"""Exports of volumes and their snapshots: making them, so that one failure does not affect others; ending
them.

How it works      A volume that cannot be exported is not served (verbs.py). A snapshot that cannot be is an
                  event, and is tried again at the next reload. An export with clients does not end; what
                  needs several ended is done within `ended`.
Owner and locks   The caller holds the volumes' locks, or it is the start.
Errors            EngineFailed of `export_live` and `end_export`; none leave the others.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from polyvol.daemon.context import Context
from polyvol.daemon.errors import EngineFailed, SnapshotWasDeleted
from polyvol.daemon.isolation import isolate
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import export_snapshot
from polyvol.snapshot.snapshot import export_description, export_name

T = TypeVar("T")


def export_live(context: Context, volume: Volume) -> None:
    """Export a volume itself, unless a backup is being restored to it."""
    if volume.restoring:
        return
    with context.engine_errors(f"exporting volume {volume.name}"):
        context.engine.export(volume.name, export_description(volume), volume.id, None)


def export_snapshots(context: Context, volume: Volume, snapshots: Iterable[SnapshotRecord]) -> None:
    """Export these snapshots of a volume, or say why one cannot be."""
    for snapshot in snapshots:
        if context.was_deleted(snapshot):
            continue  # the volume's reason says so
        name = export_name(volume.name, snapshot.name)

        what = f"exporting snapshot {name}"
        with isolate(context, what, volume=volume.name, SNAPSHOT=snapshot.name):
            export_snapshot(context.engine, volume, snapshot)


def deleted_clause(context: Context, volume: Volume) -> str | None:
    """Which snapshots of a volume only an older copy of the catalog has, as a clause, or None."""
    found = [each for each in context.catalog.snapshots.of(volume.id) if context.was_deleted(each)]
    if not found:
        return None
    first = SnapshotWasDeleted(name=export_name(volume.name, found[0].name))
    more = len(found) - 1
    return f"{first}" if not more else f"{first} ({more} more of its snapshots were deleted, too)"


def end_export(context: Context, name: str) -> int:
    """End an export that no client is connected to: 0. Else how many keep it, at least 1, and it stays."""
    clients = context.connections([name])
    if clients:
        return clients
    try:
        with context.engine_errors(f"ending the export {name}"):
            context.engine.unexport(name)
    except EngineFailed as error:
        if error.kind != "busy":
            raise
        return max(1, context.connections([name]))  # a client came in between
    return 0


@contextlib.contextmanager
def ended(things: Iterable[T], end: Callable[[T], None], again: Callable[[T], None]) -> Iterator[None]:
    """Have the exports of all of these end before what is done within, or of none: if `end` of one fails, or
    what is done within, those that have ended are exported `again`."""
    done: list[T] = []
    try:
        for each in things:
            end(each)
            done.append(each)
        yield
    except BaseException:
        for each in done:
            again(each)
        raise


def end_exports(context: Context, volume: Volume) -> None:
    """End all exports of a volume, also those with clients."""
    snapshots = [export_name(volume.name, each.name) for each in context.catalog.snapshots.of(volume.id)]
    for name in (context.restoring.pop(volume.id, volume.name), *snapshots):
        with contextlib.suppress(context.engine_error):
            context.engine.disconnect(name)
            context.engine.unexport(name)
