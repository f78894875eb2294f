"""Kept: what is deleted and stays for the clones that were made from it, and its end.

How it works      keep: a volume of whose snapshots clones were made is marked in the catalog, which forgets
                  its other snapshots, and the engine drops those. Its live map goes back to the newest
                  snapshot that is left, which frees what only it has seen. The engine goes on serving it,
                  without exports. let_go: what is kept for no clone any more is dropped; a volume with
                  nothing left is deleted; that may have been a clone itself, so this goes on until nothing
                  is found.
Durability        The catalog comes first in each: a kill in between is settled by the next start, which drops
                  what the catalog does not know, and calls let_go.
Errors            EngineFailed.
"""

import logging
from collections.abc import Callable

from polyvol.daemon.context import Context
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.records import Volume
from polyvol.snapshot.coordinator import Coordinator

_log = logging.getLogger("polyvol")


class Kept:
    """Keeps what clones need. `delete` deletes a volume that nobody knows of any more."""

    def __init__(self, context: Context, delete: Callable[[Volume], object]) -> None:
        self._context = context
        self._delete = delete
        self._coordinator = Coordinator(context.engine, context.catalog)

    def keep(self, volume: Volume) -> bool:
        """Keep a volume that is being deleted, and has no exports left, for its clones; False: it has
        none."""
        context = self._context
        if not any(source == volume.id for source, _ in context.catalog.removal.clones()):
            return False
        served = context.is_served(volume)
        gone = context.catalog.removal.keep_volume(volume)
        if served:
            with context.engine_errors(f"giving back what no clone of volume {volume.name} needs"):
                context.engine.drop_snapshots(volume.id, gone)
                newest = context.catalog.snapshots_and_kept(volume.id)[-1]
                self._coordinator.roll_back([(volume, newest)], None)
        return True

    def let_go(self) -> None:
        """Let go of all that is kept for nobody. Repeatable; what fails is logged, and tried again next
        time."""
        context = self._context
        while True:
            for identity, epochs in context.catalog.removal.unneeded_snapshots().items():
                context.catalog.removal.forget_kept(identity, epochs)
                if identity in context.volume_trouble:
                    continue  # the engine drops them when it takes the volume over
                try:
                    context.engine.drop_snapshots(identity, epochs)
                except context.engine_error as error:
                    _log.warning("dropping what was kept for clones: %s", error)
            unneeded = set(context.catalog.removal.unneeded_volumes())
            gone = [volume for volume in context.catalog.volumes() if volume.id in unneeded]
            if not gone:
                return
            for volume in gone:
                try:
                    self._delete(volume)
                except PolyvolError as error:
                    _log.warning("deleting volume %s, which was kept for clones: %s", volume.name, error)
                    return
