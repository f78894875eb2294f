"""Deletions of many snapshots: they disappear at once, and their space is freed in the background.

How it works      begin ends the exports of all that may be deleted, and removes them from the catalog in one
                  transaction. Workers (workers.py), one for each volume, then have the engine drop them, a
                  few at a time, with one sync each time, and pause for as long as they have worked, so that
                  hosts can use the disks for half of the time. They also remove rollbacks that nothing needs
                  any more; a thread finds these, soon after snapshots of a volume with rollbacks are gone, in
                  whatever way they were deleted.
Invariants        DE1 a snapshot with clients or holds, in a group's snapshot, or that an incomplete restore
                  follows, is not deleted, and the answer names it; DE2 no lock is held while the engine drops
                  snapshots or writes checkpoints; DE3 the sources of clones are not dropped but pinned for
                  them.
Why DE2 is safe    The catalog does not have the snapshots that are being dropped, and every verb looks for
                  snapshots in the catalog, under the volume's lock. So no clone, rollback, hold or export of
                  one can begin, and epochs are never reused. The engine refuses to drop what has an export,
                  or what a clone is made from.
Owner and locks   The volume's lock from asking which rollback may be removed until it is; a volume that is
                  busy is left for later. `_lock` over the jobs.
Durability        What the catalog does not have is dropped by the engine when it opens the volume. So a kill
                  at any moment loses nothing of a deletion, and no progress has to be stored. The engine
                  offers only rollbacks that its checkpoints cover: after a kill, nothing refers to a rollback
                  that the catalog has removed.
Errors            UnknownVolume, UnknownSnapshot, VolumeNotServed.
"""

import contextlib
import fnmatch
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.errors import BadRequest
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.deletions import DeletionView, SkippedSnapshotView
from polyvol.daemon.volumes.exporting import end_export, export_snapshots
from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import UnknownSnapshot
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.names import is_pattern, refuse_repeats
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import export_name

PATTERNS_MAX = 100
"""The most patterns in one request: each is compared with each snapshot, while others wait."""
BATCH = 32
"""Snapshots that the engine drops at a time."""
REST_S_MIN = 0.02
LOOK_S = 2.0
"""Between two looks at volumes with rollbacks: whether drops of snapshots have ended since."""
ANYWAY_S = 60.0
"""How long after a try to forget rollbacks there is another one in any case."""
STOP_S = 5.0
"""How long a stop waits for what is being dropped."""
_log = logging.getLogger("polyvol.deletions")


@dataclass
class _Job:
    """The deletions of one volume: epochs that are left, newest first; what has been done."""

    volume: Volume
    epochs: list[Epoch] = field(default_factory=list)
    total: int = 0
    left: int = 0
    freed: int = 0


class Deletions:
    """Deletes snapshots by the thousand."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._jobs: dict[VolumeId, _Job] = {}
        self._tried: dict[VolumeId, tuple[int, float]] = {}
        """Of a volume with rollbacks, at the last try to forget some: how many drops had ended, and when."""
        self._stopping = threading.Event()
        self._workers = Workers("polyvol-deletions")
        self._thread = threading.Thread(target=self._run, name="polyvol-rollbacks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the drop in progress, with a bounded wait; the next start drops the rest. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._workers.stop(STOP_S):
            _log.warning("deletions of snapshots are left to the next start: they do not end")

    def begin(self, volume_name: str, names: Sequence[str]) -> DeletionView:
        """Delete a volume's snapshots of these names, or that match them as patterns (with `*`, `?` or
        `[...]`)."""
        _check_names(names)
        with self._context.holding_served(volume_name, "snapshot delete", restoring=True) as volume:
            return self._begin(volume, names)

    def _begin(self, volume: Volume, names: Sequence[str]) -> DeletionView:
        context = self._context
        chosen = _chosen(volume, context.catalog.snapshots.of(volume.id), names)
        gone, kept = self._end_exports(volume, chosen)
        try:
            context.catalog.snapshots.forget([record.uuid for record in gone])
        except BaseException:
            export_snapshots(context, volume, gone)  # they exist on
            raise
        clones = context.catalog.clones.by_snapshot()
        gone = [record for record in gone if (volume.id, record.epoch) not in clones]  # DE3
        with self._lock:
            job = self._jobs.get(volume.id)
            if job is None or job.left == 0:
                job = self._jobs[volume.id] = _Job(volume)
            job.epochs = sorted([*job.epochs, *(record.epoch for record in gone)], reverse=True)
            job.total += len(gone)
            job.left += len(gone)
            view = _view(volume, job, kept)
        self._workers.run(volume.id, partial(self._work_on, volume.id))
        return view

    def show(self, volume_name: str) -> DeletionView:
        """The progress of the deletions of a volume's snapshots."""
        volume = self._context.find_volume(volume_name)
        with self._lock:
            return _view(volume, self._jobs.get(volume.id) or _Job(volume), [])

    def _end_exports(
        self, volume: Volume, records: list[SnapshotRecord]
    ) -> tuple[list[SnapshotRecord], list[SkippedSnapshotView]]:
        """The snapshots whose exports have ended, and those that are not deleted (DE1)."""
        context = self._context
        clients = context.clients()
        restore = context.catalog.restores.of(volume.id)
        base = None if restore is None else restore.base
        gone, kept = [], []
        for record in records:
            export = export_name(volume.name, record.name)
            reason = None
            whole = context.catalog.groups.of_cut(record.cut)
            if whole is not None:
                reason = f"it is part of a group's snapshot, {whole.name}, which is deleted as a whole"
            elif record.holds:
                reason = f"it is held ({', '.join(record.holds)})"
            elif base == record.epoch:
                reason = "an incomplete restore to the volume follows it"
            elif clients.get(export) or end_export(context, export):
                reason = "clients are connected to it"
            if reason is None:
                gone.append(record)
            else:
                kept.append(SkippedSnapshotView(name=record.name, reason=reason))
        return gone, kept

    def _run(self) -> None:
        """Look for rollbacks to forget, of volumes of which nothing is being dropped."""
        while not self._stopping.is_set():
            with isolate(self._context, "looking for rollbacks"):
                self._look_for_rollbacks()
            self._stopping.wait(LOOK_S)

    def _look_for_rollbacks(self) -> None:
        """Have rollbacks forgotten where drops have ended since the last try, or that is long ago."""
        context, now_s = self._context, time.monotonic()
        rolled_back = set(context.catalog.rollbacks.volumes())
        for gone in self._tried.keys() - rolled_back:
            del self._tried[gone]
        for volume in context.catalog.volumes.all():
            if volume.id not in rolled_back or not context.is_served(volume):
                continue
            with contextlib.suppress(context.engine_error):  # it may be closed in the meantime
                drops = context.engine.volume_stats(volume.id)["drops"]
                before, tried_s = self._tried.get(volume.id, (-1, 0.0))
                if drops != before or now_s - tried_s >= ANYWAY_S:
                    self._tried[volume.id] = (drops, now_s)
                    self._workers.run(volume.id, partial(self._work_on, volume.id))

    def _work_on(self, identity: VolumeId) -> None:
        """Drop the deleted snapshots of a volume, then forget its rollbacks."""
        while not self._stopping.is_set():
            began = time.monotonic()
            if not self._drop_some(identity):
                break
            self._stopping.wait(max(REST_S_MIN, time.monotonic() - began))
        what = "forgetting rollbacks"
        with isolate(self._context, what, lambda reason: _log.warning("%s: %s", what, reason)):
            volume = self._context.catalog.volumes.get(identity)
            if volume is None or not self._context.catalog.rollbacks.of(identity):
                return
            if self._context.is_served(volume) and not self._stopping.is_set():
                self._context.engine.cover_rollbacks(identity)  # DE2
                while not self._stopping.is_set() and self._forget_rollback(volume):
                    pass

    def _forget_rollback(self, volume: Volume) -> bool:
        """Forget one rollback of a volume; False if there is none that may be forgotten."""
        context = self._context
        with context.holding_all([volume], "forgetting a rollback"):
            if not context.is_served(volume):
                return False
            at = context.engine.unneeded_rollback(volume.id)
            if at is None:
                return False
            context.catalog.rollbacks.forget(volume.id, Epoch(at))
            context.engine.forget_rollback(volume.id, at)
            return True

    def _drop_some(self, identity: VolumeId) -> bool:
        """Drop some snapshots of a volume; whether there were any."""
        with self._lock:
            job = self._jobs.get(identity)
            if job is None or not job.epochs:
                return False
            epochs = job.epochs[-BATCH:]
            del job.epochs[-BATCH:]
        freed = 0
        # If the engine has closed the volume, it drops them when it opens it again.
        what = f"dropping snapshots of volume {job.volume.shown_name}"
        with isolate(self._context, what, lambda reason: _log.warning("%s: %s", what, reason)):
            freed = self._context.engine.drop_snapshots(job.volume.id, [*epochs])  # DE2
        with self._lock:
            job.left -= len(epochs)
            job.freed += freed
            done = job.left == 0
        if done and job.total > 1:
            name = (self._context.catalog.volumes.get(identity) or job.volume).shown_name
            text = f"{job.total} snapshots of volume {name} are deleted and their space given back"
            self._context.events.add("info", text, volume=name)
        return True


def _check_names(names: Sequence[str]) -> None:
    refuse_repeats("snapshot", names)
    patterns = sum(is_pattern(name) for name in names)
    if patterns > PATTERNS_MAX:
        raise BadRequest(why=f"{patterns} patterns are given, and at most {PATTERNS_MAX} can be")


def _chosen(volume: Volume, records: list[SnapshotRecord], names: Iterable[str]) -> list[SnapshotRecord]:
    by_name = {record.name: record for record in records}
    chosen: dict[str, SnapshotRecord] = {}
    for name in names:
        if is_pattern(name):
            chosen |= {each: by_name[each] for each in fnmatch.filter(by_name, name)}
        elif name in by_name:
            chosen[name] = by_name[name]
        else:
            raise UnknownSnapshot(volume=volume.name, name=name)
    return list(chosen.values())


def _view(volume: Volume, job: _Job, kept: list[SkippedSnapshotView]) -> DeletionView:
    return DeletionView(
        volume=volume.name,
        uuid=str(volume.uuid),
        total=job.total,
        left=job.left,
        freed=job.freed,
        kept=kept,
    )
