"""Exports whose names change: they end before the catalog is changed, and are made again after it.

How it works      An export with clients cannot end: the engine decides that under the lock that a connecting
                  client takes too. From the end of the exports until they are made again, no client can
                  connect, by the old name or by the new one. Then each is made as the catalog says: with its
                  new name, or with the old one if the change has failed.
Invariants        NM1 exports end all together or not at all; NM2 an export shows what its name says by the
                  catalog.
Owner and locks   The caller holds the locks of the volumes from before the exports end until they exist
                  again.
Errors            The error that `in_use` makes, if clients are connected, or EngineFailed; then all exports
                  are unchanged. If an export cannot be made again, the engine loads its volume again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.daemon.volumes.exporting import end_export, export_live, export_snapshots
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import export_name

Exported = tuple[Volume, SnapshotRecord | None]
"""A volume itself (None), or its snapshot."""


def name_of(each: Exported) -> str:
    """The name of an export."""
    volume, record = each
    return volume.name if record is None else export_name(volume.name, record.name)


@contextmanager
def exports_ended(
    context: Context, volumes: Volumes, exported: Sequence[Exported], in_use: Callable[[int], PolyvolError]
) -> Iterator[None]:
    """Within this context, these objects have no exports and can be renamed. `in_use` makes the error for a
    number of clients."""
    names = [name_of(each) for each in exported]
    clients = context.connections(names)
    if clients:
        raise in_use(clients)
    ended: list[Exported] = []
    try:
        for each, name in zip(exported, names, strict=True):
            clients = end_export(context, name)
            if clients:  # one connected in between
                raise in_use(clients)
            ended.append(each)
        yield
    finally:
        with isolate(context, "exporting what was to be renamed"):  # else the next reload does it
            for identity in dict.fromkeys(volume.id for volume, _ in ended):
                ours = [record for volume, record in ended if volume.id == identity]
                _export(context, volumes, identity, ours)


def _export(
    context: Context, volumes: Volumes, identity: VolumeId, ended: Sequence[SnapshotRecord | None]
) -> None:
    """Export a volume of this id (None) and its snapshots by the names that the catalog has (NM2)."""
    volume = context.catalog.volumes.get(identity)
    assert volume is not None, "its lock is held"
    if not context.is_served(volume):
        if context.engine_has(volume):  # because clones need it
            context.engine.rename_volume(volume.id, volume.name)
        return
    uuids: set[UUID] = {record.uuid for record in ended if record is not None}
    records = [each for each in context.catalog.snapshots.of(volume.id) if each.uuid in uuids]
    # The volume itself is last, because its clients may query changes since a snapshot.
    export_snapshots(context, volume, records)
    if None in ended:
        failed: list[str] = []
        with isolate(context, f"exporting volume {volume.name}", failed.append):
            with context.engine_errors(f"telling the engine the name of volume {volume.name}"):
                context.engine.rename_volume(volume.id, volume.name)
            export_live(context, volume)
        if failed:
            volumes.serve_again(volume, failed[0])
