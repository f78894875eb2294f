"""Retries of volumes that are not served: when a device has come back, or at a reload.

How it works      Each volume that is not served is retried, under its lock, by workers (workers.py): one for
                  a volume and all clones of it, which come after it. A hang delays no other volume.
Owner and locks   The caller holds no lock.
Errors            None: `volume_trouble` has the findings.
"""

from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.daemon.volumes.verbs import Volumes
from polyvol.daemon.workers import Workers
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import export_name

WAIT_S = 15.0
"""How long who asks for it waits for the volumes; what hangs goes on by itself."""


class Serving:
    """Serves volumes again."""

    def __init__(self, context: Context, volumes: Volumes) -> None:
        self._context = context
        self._volumes = volumes
        self._workers = Workers("polyvol-serve")

    def serve_waiting(self) -> None:
        """Try again to serve the volumes that are not, and to finish deleting."""
        families: dict[int, list[Volume]] = {}
        first: dict[int, int] = {}
        for volume in self._context.catalog.volumes.all():
            source = None if volume.source is None else volume.source.volume
            first[volume.id] = volume.id if source is None else first.get(source, source)
            if volume.id in self._context.volume_trouble:
                families.setdefault(first[volume.id], []).append(volume)
        for key, family in families.items():
            self._workers.run(key, partial(self._serve_family, family))
        if families:
            self._workers.wait(WAIT_S)
        self._volumes.release_unneeded()

    def finish(self) -> None:
        """Do what earlier errors have left undone of volumes that are served (Volumes.finish)."""
        context = self._context
        there = {export["name"]: export["size"] for export in context.engine.exports()}
        half = self._volumes.log_areas.half_made()
        for volume in context.catalog.volumes.all():
            if volume.kept or not context.is_served(volume):
                continue
            found = [
                each for each in context.catalog.snapshots.of(volume.id) if not context.was_deleted(each)
            ]
            names = {export_name(volume.name, each.name) for each in found}
            right = volume.restoring or there.get(volume.name, -1) >= volume.size
            if volume.id in half or not right or not names <= there.keys():
                self._workers.run(volume.id, partial(self._finish, volume))
        self._workers.wait(WAIT_S)

    def _finish(self, volume: Volume) -> None:
        with (
            isolate(self._context, f"finishing volume {volume.shown_name}", lambda _: None),
            self._context.holding_all([volume], "being finished"),
        ):
            now = self._context.catalog.volumes.get(volume.id)
            if now is not None and not now.kept and self._context.is_served(now):
                self._volumes.finish(now)

    def _serve_family(self, family: list[Volume]) -> None:
        """Try volumes again, in this order."""
        for volume in family:
            with (
                isolate(self._context, f"serving volume {volume.shown_name} again", lambda _: None),
                self._context.holding_all([volume], "being served again"),
            ):
                now = self._context.catalog.volumes.get(volume.id)
                if now is None or now.id not in self._context.volume_trouble:
                    continue
                if now.state == "ready":
                    self._volumes.serve(now)
                else:
                    self._volumes.settle(now)
