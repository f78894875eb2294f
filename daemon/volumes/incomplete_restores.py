"""Incomplete restores: what status shows of a volume that a backup is being restored to."""

from collections.abc import Iterable

from polyvol.daemon.context import Context
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.restores import IncompleteRestoreView
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume


def restore_view(
    context: Context, volume: Volume, snapshots: Iterable[SnapshotRecord]
) -> IncompleteRestoreView | None:
    """The restore to a volume that has these snapshots; None if none is incomplete."""
    restore = context.catalog.restores.of(volume.id)
    if restore is None:
        return None
    export = context.restoring.get(volume.id)
    return IncompleteRestoreView(
        source=restore.source,
        stream=str(restore.stream),
        snapshot=restore.snapshot,
        snapshot_uuid=str(restore.snapshot_uuid),
        base=next((each.name for each in snapshots if each.epoch == restore.base), None),
        begun=iso(restore.begun_ns),
        connections=0 if export is None else context.connections([export]),
    )


def restore_reason(name: str, view: IncompleteRestoreView) -> str:
    """Why the volume of this name is not exported, as a clause; what to do, if no command is restoring it."""
    if not view.connections:
        return (
            f"the restore of snapshot {view.snapshot} from {view.source} is incomplete, and not running:"
            f" `polyvol restore FILE {name} --resume` finishes it,"
            f" `polyvol volume abandon-restore {name}` ends it"
        )
    return f"snapshot {view.snapshot} is being restored to it from {view.source}"
