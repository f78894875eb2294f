"""Space monitor: watches the change logs of all volumes, warns, and frees space as a volume's policy says. It
also handles the engine's other events, about devices that do not answer.

How it works      One thread waits for the engine's events, and samples every volume's use each SAMPLE_S.
                  Workers (workers.py) free space, one for each volume.
                  When the engine reports that a volume's logs are full, its writes wait. Blocks are brought
                  back to their base places; if there are none, log areas grow (volumes/log_growth.py); if
                  they cannot, with 'keep-writing' the oldest scheduled snapshot without a hold is dropped.
                  The writes are retried, until they fit or nothing is left to do. Then the engine fails them
                  with ENOSPC, and sends no more events until blocks were brought back again, log areas can
                  grow again, or there is a snapshot to drop again. Log areas grow ahead of that where they
                  are almost full.
Invariants        CW1 every event is answered: the writes are retried, or fail; CW2 snapshots made by hand,
                  with holds or with clients are never dropped; CW3 nothing is dropped for writes that no
                  longer wait; CW4 when a drop has given nothing to them, no other snapshot is dropped until
                  something is free in their areas.
Owner and locks   Its thread, `polyvol-space`, takes no volume's lock and calls nothing that may wait for a
                  device. Workers hold the volume's lock, or its `room` while a cut of it is waited for.
                  Waiting writes delay neither cuts nor deletions, so the holder of the lock finishes, unless
                  a device of this volume hangs. Then its writes continue to wait.
Errors            A failure to drop or to grow is an event, and the writes fail with ENOSPC.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.devices.health import device_troubles
from polyvol.daemon.errors import Restoring, SnapshotInUse, VolumeBusy, log_failure
from polyvol.daemon.fill_level import FillLevel, Level
from polyvol.daemon.isolation import isolate
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.space.state_space import StateSpaceMonitor
from polyvol.daemon.space.use_counts import UseCounts
from polyvol.daemon.volumes.advice import advice
from polyvol.daemon.volumes.failed_checkpoints import tell_checkpoint
from polyvol.daemon.volumes.log_growth import LogGrowth
from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size
from polyvol.snapshot.errors.holds import SnapshotHeld
from polyvol.snapshot.retention import droppable
from polyvol.snapshot.snapshot import export_name

if TYPE_CHECKING:
    from polyvol.engine import DeviceEvent, EngineEvent

SAMPLE_S = 2.0
STOP_S = 5.0
"""How long a stop waits for room that is being made."""
MEMBERS_WAIT_S = 2.0
"""How long other members of a group's snapshot are waited for."""
AGAIN_S = 0.2
_WHAT = "making room for writes"
_BLOCK = 4096
_log = logging.getLogger("polyvol.space")


class SpaceMonitor:
    """The watch over the change logs. `state_space` handles journals without space for their next segment,
    and retries actions that waited for a device that hung. `relieve`: brings blocks back. `growth`: of log
    areas. `also`: other checks with the same period."""

    def __init__(
        self,
        context: Context,
        snapshots: Snapshots,
        state_space: StateSpaceMonitor | None = None,
        relieve: Callable[[Volume], int] = lambda _: 0,
        growth: LogGrowth | None = None,
        *,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._also = also
        self._state_space = state_space
        self._relieve = relieve
        self._growth = growth
        self._counts = UseCounts(context)
        self._snapshots = snapshots
        self._stopping = threading.Event()
        self._workers = Workers("polyvol-room")
        self._checkpoints_told: dict[int, str] = {}
        self._vain: dict[VolumeId, dict[int, int]] = {}
        self._thread = threading.Thread(target=self._run, name="polyvol-space", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End after the work in progress, with a bounded wait; idempotent."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._context.engine.end_events()
        if self._thread.is_alive():
            self._thread.join()
        if not self._workers.stop(STOP_S):
            _log.warning("making room for writes is left behind: it does not end")
        if not self._counts.stop(STOP_S):
            _log.warning("a count of what a volume holds is left behind: it does not end")

    def _run(self) -> None:
        next_sample_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                event = self._context.engine.next_event(max(0.0, next_sample_s - time.monotonic()))
                if event is not None:
                    self._take(event)
                if time.monotonic() >= next_sample_s:
                    next_sample_s = time.monotonic() + SAMPLE_S
                    with isolate(self._context, "looking at the change logs"):
                        self.sample()
                    with isolate(self._context, "looking for devices that became shorter"):
                        self._also()
            except Exception as error:
                log_failure(_log, "watching the change logs", error)
                self._stopping.wait(SAMPLE_S)  # or it would fill the log

    def _take(self, event: "EngineEvent | DeviceEvent") -> None:
        if event["kind"] == "log-full":
            identity = VolumeId(event["volume"])
            self._workers.run(identity, partial(self.make_room, identity))
            return
        if event["kind"] == "journal-full":
            if self._state_space is not None:
                self._state_space.journal_full(event["volume"])
            return
        context = self._context
        if event["kind"] == "checkpoint-failed" or event["kind"] == "checkpoint-written":
            tell_checkpoint(context, event["volume"], self._checkpoints_told)
            return
        name = context.device_names().get(event["device"], "?")
        if event["kind"] == "device-answers":
            context.events.add("info", f"device {name} answers again", DEVICE=name)
            if self._state_space is not None:
                self._state_space.try_again()
            return
        trouble = device_troubles(context).get(event["device"])
        reason = "it does not answer" if trouble is None else trouble.reason
        context.events.add("warning", f"device {name}: {reason}", DEVICE=name)

    def sample(self) -> None:
        """Look at the use of every volume that is served."""
        context = self._context
        volumes = [volume for volume in context.catalog.volumes.all() if context.is_served(volume)]
        for gone in context.fill_levels.keys() - {volume.id for volume in volumes}:
            context.fill_levels.pop(gone, None)
            context.refusing.discard(gone)
        served = {volume.id for volume in volumes}
        for number in self._checkpoints_told.keys() - served:
            del self._checkpoints_told[number]
        for identity in self._vain.keys() - served:
            self._vain.pop(identity, None)  # a worker may do so, too
        self._counts.keep_only(served)
        if self._growth is not None:
            self._growth.keep_only(served)
        for volume in volumes:
            what = f"looking at the change logs of volume {volume.shown_name}"
            # It may be closed in the meantime.
            with isolate(context, what, volume=volume.shown_name), contextlib.suppress(context.engine_error):
                self._look(volume)
                self._counts.look(volume)
                self._grow_ahead(volume)
                if self._may_make_room(volume):
                    # Policy, snapshots and the engine must not change in between.
                    with (
                        contextlib.suppress(VolumeBusy),
                        context.locks.room({volume.id: volume.name}, _WHAT, wait_s=0),
                    ):
                        self._ask_again(volume.id)

    def make_room(self, identity: VolumeId) -> None:
        """Answer a 'log-full' event (CW1)."""
        context = self._context
        told = False
        while True:
            volume = context.catalog.volumes.get(identity)
            try:
                served = volume is not None and context.is_served(volume)
                made = volume is not None and served and self._make_room(volume)
            except VolumeBusy as busy:
                if self._stopping.is_set():
                    made = False
                else:
                    if not told:
                        text = f"writes of volume {busy.facts['name']} wait for room: {busy.message}"
                        context.events.add("warning", text, volume=str(busy.facts["name"]))
                    told = True
                    self._stopping.wait(AGAIN_S)
                    continue
            except (PolyvolError, context.engine_error) as error:
                context.events.add("warning", f"making room for writes that wait failed: {error}")
                made = False
            except BaseException:
                self._refuse(identity)
                raise
            if made:
                with contextlib.suppress(context.engine_error):  # its writes have ended with it
                    context.engine.try_again(identity)
            else:
                self._refuse(identity)
            return

    def _make_room(self, volume: Volume) -> bool:
        """Drop a snapshot if writes wait and one may be dropped; whether they are to try again."""
        context = self._context
        with context.locks.room({volume.id: volume.name}, _WHAT):
            self._look(volume)
            self._ask_again(volume.id)
            space = context.engine.space(volume.id)
            if not space["starving"]:
                return True  # CW3
        if self._relieve(volume) > 0 or self._grow(volume, space["starved_areas"]):
            return True
        before = self._used(volume)
        if volume.id not in self._vain and self._drop_one(volume):
            self._note_vain(volume, before, space["starved_areas"])
            return True
        text = (
            f"the log areas that writes of volume {volume.name} may use are full and no snapshot may be"
            f" dropped: writes that need room fail with ENOSPC; `polyvol volume show {volume.name}` shows the"
            f" areas; {self._advice(volume, space['starved_areas'])}"
        )
        context.events.add("warning", text, volume=volume.name)
        return False

    def _grow(self, volume: Volume, areas: Collection[int], *, ahead: bool = False) -> bool:
        """Have log areas grow for writes that may use these; `ahead`: if these are still almost full. Whether
        they did. VolumeBusy."""
        if self._growth is None:
            return False
        with self._context.locks.room({volume.id: volume.name}, _WHAT):
            now = self._context.catalog.volumes.get(volume.id)
            if now is None or not self._context.is_served(now):
                return False
            if ahead and list(areas) not in self._growth.almost_full(now):
                return False
            return self._growth.grow(now, areas) > 0

    def _grow_ahead(self, volume: Volume) -> None:
        """Have log areas grow that are almost full, unless that was in vain."""
        if self._growth is None or not volume.log_bound:
            return
        groups = self._growth.almost_full(volume)
        if groups:
            self._workers.run((volume.id, "ahead"), partial(self._grow_if_free, volume, groups))

    def _grow_if_free(self, volume: Volume, groups: list[list[int]]) -> None:
        with contextlib.suppress(VolumeBusy, self._context.engine_error):  # the next look does it
            for areas in groups:
                self._grow(volume, areas, ahead=True)

    def _advice(self, volume: Volume, areas: Collection[int] | None = None) -> str:
        """What to do about log areas that are full, or will be."""
        if self._growth is None:
            return f"`polyvol volume show {volume.name}` says what they hold, and what to do"
        return advice(volume, self._context.uses.get(volume.id), self._growth.room(volume, areas))

    def _used(self, volume: Volume) -> dict[int, int]:
        """The use of each log area by its number, bytes."""
        stats = self._context.engine.volume_stats(volume.id)
        return {log["number"]: log["used_bytes"] for log in stats["logs"]}

    def _note_vain(self, volume: Volume, before: dict[int, int], starved: list[int]) -> None:
        """Note whether a drop has given nothing to the writes that wait, because their log rules allow other
        areas only (CW4): in none of these slots became free, and none can be made free by relocation."""
        if set(starved) == before.keys():
            return
        now = self._used(volume)
        if all(now.get(area, 0) >= before[area] for area in starved) and self._relieve(volume) == 0:
            self._vain[volume.id] = {area: now.get(area, 0) for area in starved}

    def _refuse(self, identity: VolumeId) -> None:
        with contextlib.suppress(self._context.engine_error):  # its writes have ended with it
            self._context.engine.ask_when_full(identity, False)
            self._context.refusing.add(identity)

    def _drop_one(self, volume: Volume) -> bool:
        """Drop the oldest snapshot that may be; False if there is none. VolumeBusy."""
        if self._policy(volume) != "keep-writing":
            return False
        busy: VolumeBusy | None = None
        for record in self._droppable(volume):  # CW2
            members = self._snapshots.members(record)
            concerned = {each.id: each.name for each, _ in members}
            # Another member of a group may stay busy: then the next snapshot is dropped.
            wait_s = None if len(members) == 1 else MEMBERS_WAIT_S
            try:
                with self._context.locks.room(concerned, _WHAT, wait_s=wait_s):
                    if self._policy(volume) != "keep-writing":
                        return False
                    if all(each.uuid != record.uuid for each in self._droppable(volume)):
                        continue  # it was held or deleted in between
                    with contextlib.suppress(SnapshotInUse, SnapshotHeld, Restoring):
                        self._drop(volume, record)
                        return True
            except VolumeBusy as error:
                busy = error
        if busy is not None:
            raise busy
        return False

    def _policy(self, volume: Volume) -> str | None:
        """The policy of a volume for full logs; None if the volume is deleted."""
        now = self._context.catalog.volumes.get(volume.id)
        return None if now is None else now.when_full

    @reads
    def _droppable(self, volume: Volume) -> list[SnapshotRecord]:
        """The snapshots that may be dropped, oldest first: not what an incomplete restore follows, nor what
        clones were made from, of which nothing would come back."""
        catalog = self._context.catalog
        kept = {epoch for identity, epoch in catalog.clones.by_snapshot() if identity == volume.id}
        restore = catalog.restores.of(volume.id)
        if restore is not None and restore.base is not None:
            kept.add(restore.base)
        return [record for record in droppable(catalog.snapshots.of(volume.id)) if record.epoch not in kept]

    def _drop(self, volume: Volume, record: SnapshotRecord) -> None:
        freed = self._snapshots.drop(volume, self._snapshots.members(record))
        text = (
            f"the log areas that writes of volume {volume.name} may use are full: snapshot"
            f" {export_name(volume.name, record.name)}, made by a schedule, was dropped so that writes go on;"
            f" {format_size(freed)} given back"
        )
        self._context.events.add("warning", text, volume=volume.name)

    def _look(self, volume: Volume) -> None:
        context = self._context
        found = context.engine.space(volume.id)
        fill_level = context.fill_levels.setdefault(volume.id, FillLevel())
        used, size = found["used_bytes"], found["size_bytes"]
        redirected = context.engine.volume_stats(volume.id)["redirected_blocks"] * _BLOCK
        crossed = fill_level.tell(time.monotonic(), used, size, redirected)
        if crossed is not None:
            self._warn(volume, crossed, used, size)

    def _ask_again(self, identity: VolumeId) -> None:
        """Have the engine send events again if there is a snapshot to drop again, or log areas can grow.
        Under the volume's `room`."""
        context = self._context
        volume = context.catalog.volumes.get(identity)
        if volume is not None and context.is_served(volume) and self._may_make_room(volume):
            context.ask_when_full(volume)

    def _may_make_room(self, volume: Volume) -> bool:
        """Whether the engine sends no events, but could send them again."""
        if volume.id not in self._context.refusing:
            return False
        return self._may_drop(volume) or (self._growth is not None and self._growth.may_grow(volume))

    @reads
    def _may_drop(self, volume: Volume) -> bool:
        """Whether there is a snapshot to drop again for writes that were refused."""
        vain = self._vain.get(volume.id)
        if vain is not None:
            now = self._used(volume)
            if all(now.get(area, 0) >= used for area, used in vain.items()):
                return False
            del self._vain[volume.id]
        if volume.id not in self._context.refusing or volume.when_full != "keep-writing":
            return False
        records = self._droppable(volume)
        clients = self._context.clients()
        wholes = (self._snapshots.members(record) for record in records)
        return any(
            not any(each.holds or clients.get(export_name(owner.name, each.name)) for owner, each in whole)
            for whole in wholes
        )

    def _warn(self, volume: Volume, level: Level, used: int, size: int) -> None:
        so_full = "full" if level == "full" else f"at {used / size:.0%}"
        text = (
            f"the change logs of volume {volume.name} are {so_full}:"
            f" {format_size(used)} of {format_size(size)} used; {self._advice(volume)}"
        )
        grows = self._growth is not None and self._growth.room(volume).left(volume) > 0
        self._context.events.add("info" if grows else "warning", text, volume=volume.name)
