"""The coordinator: takes one snapshot of one volume or of several, at one instant.

How it works      1. cut      the engine stops writes to the volumes, ends their epochs, resumes writes;
                  2. thaw     quiesced applications resume (daemon/hooks/run.py), before any wait for a disk;
                  3. settle   every write that was in flight at the cut completes;
                  4. flush    the snapshots' data and mapping records become durable;
                  5. commit   one catalog transaction records the snapshots of all volumes: now they exist;
                  6. export   each appears as VOLUME@SNAPSHOT.
                  If a step fails, the completed steps are undone in reverse order: exports end, the catalog
                  forgets the cut, the engine drops each epoch; then CutFailed is raised. If a step of the
                  undo fails, it is reported to `left_over`, and the others are still done.
Invariants        SN1 a snapshot exists if and only if the catalog has it; SN2 either all volumes of a cut
                  have their snapshot or none has; SN3 the engine drops an epoch only when the catalog
                  certainly does not have it.
Owner and locks   The caller holds the locks of the volumes (daemon/locks.py). `lent` of `take`: while it
                  waits for disks, a deletion of other snapshots may share them.
Durability        A kill before step 5 leaves no snapshot: the engine drops, at the next start, the epochs
                  that the catalog does not know. A kill after it loses nothing; the export is made at the
                  next start.
Errors            CutFailed; HooksFailed of `thaw`, if all was undone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol
from uuid import UUID, uuid4

from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.clock import in_range
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.groups import GroupSnapshot
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.rollbacks import Rollback
from polyvol.mapping.records.snapshots import Consistency, Origin, SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.specs import rule_specs
from polyvol.snapshot.errors.cuts import CutFailed
from polyvol.snapshot.errors.hooks import HooksFailed
from polyvol.snapshot.snapshot import export_description, export_name

if TYPE_CHECKING:
    from polyvol.engine import CutReport, CutVolume, LogRule as LogRuleSpec


class CutEngine(Protocol):
    """What the coordinator needs of the engine."""

    def cut(self, volumes: "list[CutVolume]") -> "CutReport":
        """Make one cut over these volumes."""

    def settle(self, volume: int, epoch: int) -> None:
        """Wait until the epoch's writes have landed."""

    def flush(self, volume: int) -> None:
        """Make everything acknowledged durable."""

    def drop_snapshot(self, volume: int, epoch: int) -> int:
        """Forget an epoch; bytes freed."""

    def export(self, name: str, description: str, volume: int, epoch: int | None) -> None:
        """Export a volume or a snapshot."""

    def unexport(self, name: str) -> None:
        """End an export."""

    def roll_back(self, volume: int, at: int, to: int) -> None:
        """Roll a volume back to its snapshot of an epoch, as the catalog says."""


Thaw = Callable[[], Mapping[int, tuple[Consistency, str | None]]]
"""Ends what was made ready for a cut: what its snapshots show by volume id, and why not more; those that are
not in it are crash-consistent."""


LeftOver = Callable[[Volume | None, str, Exception], object]
"""Is told of each step that failed while something was undone or ended: of which volume (None: of several),
what was to be done, and why it failed."""


class Coordinator:
    """Takes cuts on one engine and records them in one catalog."""

    def __init__(self, engine: CutEngine, catalog: Catalog, left_over: LeftOver = lambda *_: None) -> None:
        self._engine = engine
        self._catalog = catalog
        self._left_over = left_over

    def take(
        self,
        volumes: Sequence[Volume],
        name: str,
        rules: Mapping[VolumeId, tuple[LogRule, ...]] | None = None,
        origin: Origin = "hand",
        *,
        schedule: str | None = None,
        group: int | None = None,
        thaw: Thaw | None = None,
        restored: RestoreRecord | None = None,
        lent: AbstractContextManager[None] | None = None,
    ) -> list[SnapshotRecord]:
        """The snapshots, one for each volume, durable and exported. `name` is free in all of them. `rules`:
        log rules for the change logs that begin with it, by volume id. `group`: the group of the snapshot;
        `schedule`: the schedule that requests it; `restored`: the restore that this snapshot completes, in
        the transaction that commits it. `thaw` is not called if there was no cut. Waits for disks are within
        `lent`."""
        named = rules or {}
        cut = uuid4()
        start = time.monotonic_ns()
        try:
            report = self._engine.cut(
                [
                    {"volume": each.id, "log_rules": self._specs(each, named.get(each.id, ()))}
                    for each in volumes
                ]
            )
        except Exception as cause:
            raise CutFailed(volumes=_names(volumes), cause=cause, undo_failed_on=()) from cause
        try:
            marks = {} if thaw is None else thaw()
            with lent or nullcontext():
                self._settle(volumes, report["epochs"])
            durable_ns = time.monotonic_ns() - start
            records = []
            for volume in volumes:
                consistency, trouble = marks.get(volume.id, ("crash", None))
                record = _record(volume, name, cut, report, named, durable_ns)
                records.append(
                    replace(
                        record,
                        origin=origin,
                        schedule=schedule,
                        consistency=consistency,
                        hook_trouble=trouble,
                        copy_of=None if restored is None else restored.snapshot_uuid,
                    )
                )
            whole = None if group is None else GroupSnapshot(cut, group, name)
            self._catalog.snapshots.commit(records, whole)
            for volume, record in zip(volumes, records, strict=True):
                export_snapshot(self._engine, volume, record)
        except Exception as cause:
            failed = self._undo(volumes, name, cut, report["epochs"], restored)
            if isinstance(cause, HooksFailed) and not failed:
                raise
            raise CutFailed(volumes=_names(volumes), cause=cause, undo_failed_on=failed) from cause
        return records

    def roll_back(
        self,
        targets: Sequence[tuple[Volume, SnapshotRecord]],
        safety: str | None,
        group: int | None = None,
        *,
        abandoned: RestoreRecord | None = None,
    ) -> list[SnapshotRecord]:
        """Roll volumes without exports of their own back to their snapshots, all or none. Their old contents
        become a snapshot named `safety`, of `group` if given, or are dropped if there is no name. Returns
        these snapshots. `abandoned`: the restore to a volume that ends with this. An error of the engine
        after the commit does not stop the rollback of other volumes: the catalog has it, and the engine
        completes it when it loads the volume again."""
        volumes = [volume for volume, _ in targets]
        cut, start = uuid4(), time.monotonic_ns()
        try:
            report = self._engine.cut([{"volume": volume.id, "log_rules": []} for volume in volumes])
        except Exception as cause:
            raise CutFailed(volumes=_names(volumes), cause=cause, undo_failed_on=()) from cause
        epochs = report["epochs"]
        try:
            self._settle(volumes, epochs)
            durable_ns = time.monotonic_ns() - start
            named = [] if safety is None else volumes
            records = [_record(volume, safety or "", cut, report, {}, durable_ns) for volume in named]
            whole = None if group is None or safety is None else GroupSnapshot(cut, group, safety)
            # The epoch after the cut's, in which nothing is written, is the last of what is left.
            rollbacks = {
                volume.id: Rollback(Epoch(epochs[volume.id] + 1), target.epoch, volume.size, target.size)
                for volume, target in targets
            }
            self._catalog.snapshots.commit(records, whole, rollbacks)
        except Exception as cause:
            # A commit that failed may still be durable. The restore's record comes first:
            # a volume without one is complete.
            undone = [
                abandoned is None
                or self._done(None, "recording the restore again", self._catalog.restores.put_back, abandoned)
            ]
            forget = self._catalog.rollbacks.forget
            undone += [
                self._done(volume, "forgetting the rollback", forget, volume.id, epochs[volume.id] + 1)
                for volume in volumes
            ]
            failed = self._undo(volumes, safety or "", cut, epochs) if all(undone) else ["the catalog"]  # SN3
            raise CutFailed(volumes=_names(volumes), cause=cause, undo_failed_on=failed) from cause
        rolled = {volume: rollbacks[volume.id] for volume in volumes}
        self._end_rollback(rolled, records, {} if safety is not None else epochs)
        return records

    def _end_rollback(
        self,
        rollbacks: Mapping[Volume, Rollback],
        records: Sequence[SnapshotRecord],
        dropped: Mapping[int, int],
    ) -> None:
        """Have the engine execute the catalog's rollbacks of these volumes: `records` are the snapshots of
        their old contents, `dropped` the epochs of those that are not kept. Raises the first error, reports
        the others."""
        errors: list[tuple[Volume, str, Exception]] = []
        for volume, rollback in rollbacks.items():
            with _collected(errors, volume, "rolling back"):
                self._engine.roll_back(volume.id, rollback.at, rollback.to)
        for volume, record in zip(rollbacks if records else (), records, strict=True):
            with _collected(errors, volume, f"exporting its snapshot {record.name}"):
                export_snapshot(self._engine, volume, record)
        for volume in rollbacks if dropped else ():
            with _collected(errors, volume, "dropping what it was"):
                self._engine.drop_snapshot(volume.id, dropped[volume.id])
        for error in errors[1:]:
            self._left_over(*error)
        if errors:
            raise errors[0][2]

    def _specs(self, volume: Volume, rules: tuple[LogRule, ...]) -> "list[LogRuleSpec]":
        """A snapshot's log rules as the engine's specification."""
        if not rules:
            return []
        areas = self._catalog.log_areas.of(volume.id)
        return rule_specs(rules, areas, self._catalog.volumes.processors(volume.id))

    def _settle(self, volumes: Sequence[Volume], epochs: Mapping[int, int]) -> None:
        """Wait until the writes that a cut covers have completed and are durable."""
        for volume in volumes:
            self._engine.settle(volume.id, epochs[volume.id])
        for volume in volumes:
            self._engine.flush(volume.id)

    def _undo(
        self,
        volumes: Sequence[Volume],
        name: str,
        cut: UUID,
        epochs: Mapping[int, int],
        unrestored: RestoreRecord | None = None,
    ) -> list[str]:
        """Undo the steps of a cut; the names of those that could not be undone."""
        exports = {export_name(volume.name, name): volume for volume in volumes}
        failed = [
            export
            for export, volume in exports.items()
            if not self._done(volume, f"ending the export {export}", self._engine.unexport, export)
        ]
        forgotten = (cut,) if unrestored is None else (cut, unrestored)
        forget = self._catalog.snapshots.forget_cut
        if not self._done(None, f"forgetting the snapshot {name}", forget, *forgotten):
            return [*failed, "the catalog"]  # SN3
        return failed + [
            volume.name
            for volume in volumes
            if not self._done(
                volume, "dropping its snapshot", self._engine.drop_snapshot, volume.id, epochs[volume.id]
            )
        ]

    def _done(
        self, volume: Volume | None, what: str, action: Callable[..., object], *arguments: object
    ) -> bool:
        """Undo one step; whether that succeeded. A failure does not stop the rest."""
        try:
            action(*arguments)
        except Exception as error:
            self._left_over(volume, what, error)
            return False
        return True


def export_snapshot(engine: CutEngine, volume: Volume, snapshot: SnapshotRecord) -> None:
    """Make a snapshot's export."""
    text = export_description(volume, snapshot)
    engine.export(export_name(volume.name, snapshot.name), text, volume.id, snapshot.epoch)


def _record(
    volume: Volume,
    name: str,
    cut: UUID,
    report: "CutReport",
    rules: Mapping[VolumeId, tuple[LogRule, ...]],
    durable_ns: int,
) -> SnapshotRecord:
    return SnapshotRecord(
        uuid=uuid4(),
        cut=cut,
        volume=volume.id,
        name=name,
        epoch=Epoch(report["epochs"][volume.id]),
        instant_ns=in_range(report["instant_ns"]),
        stall_ns=report["stall_ns"],
        durable_ns=durable_ns,
        stalls=tuple((part["processor"], part["stall_ns"]) for part in report["processors"]),
        size=volume.size,
        log_rules=rules.get(volume.id, ()),
        shares=tuple(
            (part["processor"], part["partitions"][volume.id])
            for part in report["processors"]
            if volume.id in part["partitions"]
        ),
    )


@contextmanager
def _collected(errors: list[tuple[Volume, str, Exception]], volume: Volume, what: str) -> Iterator[None]:
    """Keep the error of one volume from affecting the others."""
    try:
        yield
    except Exception as error:
        errors.append((volume, what, error))


def _names(volumes: Sequence[Volume]) -> str:
    return ", ".join(volume.name for volume in volumes)
