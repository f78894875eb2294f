"""Exports of volumes and their snapshots, made so that one that fails keeps no other from being made.

How it works      A volume that cannot be exported is not served (volumes.py). A snapshot that cannot be
                  is an event, and is tried again at the next reload.
Owner and locks   The caller holds the volume's lock, or it is the start.
Errors            EngineFailed of `export_live`; none leave the others.
"""

import contextlib
from collections.abc import Iterable

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import export_snapshot
from polyvol.snapshot.snapshot import export_name


def export_live(context: Context, volume: Volume) -> None:
    """Export a volume itself, unless a backup is being restored to it."""
    if volume.restoring:
        return
    # Attached hosts tell by the UUID whether it is the one that they knew.
    text = f"volume {volume.name} ({volume.uuid})"
    with context.engine_errors(f"exporting volume {volume.name}"):
        context.engine.export(volume.name, text, volume.id, None)


def export_snapshots(context: Context, volume: Volume, snapshots: Iterable[SnapshotRecord]) -> None:
    """Export these snapshots of a volume, or say why one cannot be."""
    for snapshot in snapshots:
        name = export_name(volume.name, snapshot.name)

        what = f"exporting snapshot {name}"
        with isolate(context, what, volume=volume.name, SNAPSHOT=snapshot.name):
            export_snapshot(context.engine, volume, snapshot)


def end_exports(context: Context, volume: Volume) -> None:
    """End all exports of a volume, also those with clients."""
    snapshots = [export_name(volume.name, each.name) for each in context.catalog.snapshots.of(volume.id)]
    for name in (context.restoring.pop(volume.id, volume.name), *snapshots):
        with contextlib.suppress(context.engine_error):
            context.engine.disconnect(name)
            context.engine.unexport(name)
