"""Clone pins: deleted volumes and snapshots that clones still need, and their deferred deletion.

How it works      keep: a volume with clones is not deleted but marked in the catalog, which forgets the
                  snapshots that no clone was made from; the engine drops those. Its live map returns to the
                  newest snapshot that is left, which frees what only the live volume saw. The engine still
                  serves it, without exports. release: what no clone needs any more is dropped, and a volume
                  with nothing left is deleted. That volume may be a clone itself, so release repeats until
                  it finds nothing.
Owner and locks   `record` under the volume's lock and `catalog_lock`, `keep` under the volume's lock.
                  `release` takes the lock of each volume that it drops something of, and skips what is busy.
Durability        The catalog is changed first. After a kill in between, the next start drops what the catalog
                  does not have, and calls `release`.
Errors            Those of the catalog, of `record`. Others are events, and what failed is tried again at the
                  next deletion, reload or start.
"""

from collections.abc import Callable
from contextlib import suppress

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.daemon.left_over import coordinator
from polyvol.mapping.errors import UnknownVolume
from polyvol.mapping.ids import Epoch
from polyvol.mapping.records.volumes import Volume


class ClonePins:
    """Keeps what clones need. `delete` deletes a volume that no clone needs."""

    def __init__(self, context: Context, delete: Callable[[Volume], object]) -> None:
        self._context = context
        self._delete = delete
        self._coordinator = coordinator(context)

    def record(self, volume: Volume) -> list[Epoch] | None:
        """Have the catalog keep a volume that is being deleted, and has no exports left, for its clones: the
        epochs of its snapshots that are gone; None: it has no clones."""
        clones = self._context.catalog.clones
        if not any(source == volume.id for source, _ in clones.by_snapshot()):
            return None
        return clones.keep_volume(volume)

    def keep(self, volume: Volume, gone: list[Epoch]) -> None:
        """Have the engine free what no clone needs of a volume that was recorded as kept."""
        context = self._context
        if context.is_served(volume):
            # The volume is deleted, whether this succeeds or not; the next start repeats the first step.
            with isolate(context, f"giving back what no clone of volume {volume.name} needs"):
                context.engine.drop_snapshots(volume.id, [*gone])
                newest = context.catalog.snapshots.with_kept(volume.id)[-1]
                self._coordinator.roll_back([(volume, newest)], None)

    def release(self) -> None:
        """Drop all that no clone needs any more. Idempotent; what fails or is busy is an event, and tried
        again next time."""
        clones = self._context.catalog.clones
        tried: set[int] = set()
        while True:
            unneeded = {*clones.unneeded_snapshots(), *clones.unneeded_volumes()} - tried
            volumes = [volume for volume in self._context.catalog.volumes.all() if volume.id in unneeded]
            if not volumes:
                return
            for volume in volumes:
                what = f"giving back what volume {volume.shown_name} kept for clones"
                tried.add(volume.id)
                with (
                    isolate(self._context, what),
                    suppress(UnknownVolume),  # another thread has done it
                    self._context.holding_all([volume], what),
                ):
                    if self._release_one(volume):
                        tried.discard(volume.id)

    def _release_one(self, volume: Volume) -> bool:
        """Drop what no clone needs of a volume, and the volume if nothing is left of it; whether that was
        done."""
        context, clones = self._context, self._context.catalog.clones
        epochs = clones.unneeded_snapshots().get(volume.id, [])
        if epochs:
            clones.forget_kept(volume.id, epochs)
            if (
                volume.id not in context.volume_trouble
            ):  # else the engine does it when it takes the volume over
                with context.engine_errors(f"dropping snapshots of volume {volume.name}"):
                    context.engine.drop_snapshots(volume.id, [*epochs])
        if volume.id in clones.unneeded_volumes():
            self._delete(volume)
        return volume.id not in {*clones.unneeded_snapshots(), *clones.unneeded_volumes()}
