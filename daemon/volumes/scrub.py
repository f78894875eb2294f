"""Scrubs: reading everything that has a checksum, at a bounded rate, on request or once a week.

How it works      A scrub is a thread that has the engine read a volume's slots, partition by partition, about
                  a sixteenth of a second's worth at a time, and sleeps so that the rate is kept. Its view is
                  replaced after each step; the last one that came to its end is kept in the catalog. With
                  weekly scrubs switched on, a thread looks every minute, and when one ends, for the volume
                  whose last scrub (or whose making) is a week ago or longest ago, so one that was missed is
                  made up for after a start, one at a time
                  (one that hangs does not count). How long ago that is, the wall clock tells once,
                  when a volume is first looked at; a week from there is by the steady clock, so that setting
                  the clock changes nothing. A time in the future is not believed: the volume is due at once,
                  and that is said.
Owner and locks   `_lock` over the scrubs that run, the views and the due times, held for a look or a change.
Errors            ScrubRunning, NoScrub. What cannot be read is in the view; a scrub that cannot go on ends
                  as 'failed', with the reason.
"""

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.errors import BadRequest, NoScrub, ScrubRunning
from polyvol.daemon.isolation import isolate
from polyvol.daemon.sizes import SCRUB_RATE_MAX, SCRUB_RATE_MIN
from polyvol.daemon.types.base import WHY_FUTURE, iso
from polyvol.daemon.types.scrubs import ScrubBadBlockView, ScrubState, ScrubView
from polyvol.mapping.ids import Epoch
from polyvol.mapping.os_errors import reason_of
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import exact_size, format_size
from polyvol.snapshot.snapshot import export_name

if TYPE_CHECKING:
    from polyvol.engine import ScrubBad

WEEK_NS = 7 * 24 * 3600 * 1_000_000_000
RETRY_NS = 3600 * 1_000_000_000
RATE_DEFAULT = 64 << 20
END_S = 5.0
"""How long to wait for a scrub after it was asked to stop."""
HUNG_S = 60.0
"""A scrub that has read nothing for so long keeps the weekly scrubs of others waiting no more."""
_LOOK_S = 60.0
_STEPS_A_SECOND = 16
_LISTED_MAX = 1000
_WEEKLY = "weekly-scrub"
_log = logging.getLogger("polyvol.scrub")


@dataclass
class _Running:
    """A running scrub, and its stop request."""

    view: ScrubView
    thread: threading.Thread | None = None
    stop_requested: threading.Event = field(default_factory=threading.Event)
    moved_s: float = field(default_factory=time.monotonic)
    """When it last began to read, or read something."""


class Scrubs:
    """The verbs of scrubs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._ended: dict[int, ScrubView] = {}
        self._due_at: dict[int, int] = {}  # by volume id and the steady clock
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._weekly_thread = threading.Thread(target=self._run_weekly, name="polyvol-weekly", daemon=True)

    def start(self) -> None:
        """Begin to look for scrubs that are due."""
        self._weekly_thread.start()

    def stop(self) -> None:
        """End all scrubs, but do not wait for ever; what is under way of them is not kept."""
        self._stopping.set()
        self._look.set()
        with self._lock:
            running = list(self._running.values())
        for scrub in running:
            scrub.stop_requested.set()
        until = time.monotonic() + END_S
        for scrub in running:
            if scrub.thread is not None:
                scrub.thread.join(max(0.0, until - time.monotonic()))
        if self._weekly_thread.is_alive():
            self._weekly_thread.join()

    def begin(self, name: str, rate: int) -> ScrubView:
        """Start a scrub of a volume, at `rate` bytes a second."""
        if not SCRUB_RATE_MIN <= rate <= SCRUB_RATE_MAX:
            rates = f"{format_size(SCRUB_RATE_MIN)} to {format_size(SCRUB_RATE_MAX)}"
            why = f"a rate of {exact_size(rate)} a second is not from {rates}"
            raise BadRequest(why=why)
        context = self._context
        volume = context.find_volume(name)
        context.refuse_not_served(volume, restoring=True)
        with context.engine_asked(f"asking for the use of volume {name}", volume):
            logs = context.engine.volume_stats(volume.id)["logs"]
        total = sum(log["used_bytes"] for log in logs)
        view = ScrubView(volume=name, state="running", started=iso(context.clock()), rate=rate, total=total)
        scrub = _Running(view)
        scrub.thread = threading.Thread(
            target=self._run, args=(volume, scrub), name="polyvol-scrub", daemon=True
        )
        with self._lock:
            if volume.id in self._running:
                raise ScrubRunning(name=name)
            scrub.thread.start()  # `stop` joins what it finds in `_running`, so it is started by then
            self._running[volume.id] = scrub
            self._ended.pop(volume.id, None)
        return view

    @reads
    def show(self, name: str) -> ScrubView:
        """The scrub of a volume that is under way, else the last one."""
        volume = self._context.find_volume(name)
        with self._lock:
            scrub = self._running.get(volume.id)
            ended = self._ended.get(volume.id)
        view = ended if scrub is None else scrub.view
        if view is None:
            view = self.last(volume)
        if view is None:
            raise NoScrub(name=name)
        return replace(view, volume=volume.name)  # it may have been renamed since

    def last(self, volume: Volume) -> ScrubView | None:
        """The last scrub of a volume that came to its end, if one did."""
        found = self._context.catalog.scrubs.last(volume.id)
        if found is None:
            return None
        values = json.loads(found[1])
        values["bad"] = [ScrubBadBlockView(**bad) for bad in values["bad"]]
        return ScrubView(**{**values, "volume": volume.name})

    def end(self, name: str) -> ScrubView:
        """Stop a volume's scrub, if one is under way; it is 'running' still if a device hangs."""
        volume = self._context.find_volume(name)
        with self._lock:
            scrub = self._running.get(volume.id)
        if scrub is not None and scrub.thread is not None:
            scrub.stop_requested.set()
            scrub.thread.join(END_S)
        return self.show(name)

    @property
    def weekly(self) -> bool:
        """Whether every volume is scrubbed once a week."""
        return self._context.catalog.settings.get(_WEEKLY) == "on"

    def set_weekly(self, on: bool) -> None:
        """Switch weekly scrubs on or off."""
        self._context.catalog.settings.set(_WEEKLY, "on" if on else "off")
        self._look.set()

    def due(self) -> Volume | None:
        """The volume whose weekly scrub has been due for longest, if one is due and none is under way."""
        if not self.weekly:
            return None
        with self._lock:
            if any(time.monotonic() - scrub.moved_s < HUNG_S for scrub in self._running.values()):
                return None
            running = set(self._running)
        context = self._context
        dues: dict[Volume, int] = {}
        for volume in context.catalog.volumes.all():
            if context.is_served(volume) and not volume.kept and volume.id not in running:
                what = f"looking when the weekly scrub of volume {volume.name} is due"
                with isolate(context, what, volume=volume.name):
                    dues[volume] = self._due(volume)
        first = min(dues, key=dues.__getitem__, default=None)
        return first if first is not None and dues[first] <= context.steady() else None

    def _due(self, volume: Volume) -> int:
        """When a volume's weekly scrub is due, by the steady clock."""
        with self._lock:
            due = self._due_at.get(volume.id)
        if due is None:
            last = self._context.catalog.scrubs.last(volume.id)
            since, what = (volume.created_ns, "making") if last is None else (last[0], "last scrub")
            ago = self._context.clock() - since
            if ago < 0:
                text = (
                    f"the {what} of volume {volume.name} at {iso(since)} lies in the future, {WHY_FUTURE}:"
                    " its weekly scrub is due now"
                )
                self._context.events.add("warning", text, volume=volume.name)
            due = self._context.steady() + (WEEK_NS - ago if ago >= 0 else 0)
            with self._lock:
                due = self._due_at.setdefault(volume.id, due)
        return due

    def _begin_weekly(self) -> None:
        volume = self.due()
        if volume is None:
            return
        with self._lock:  # one that fails is tried again later, and keeps no others waiting
            self._due_at[volume.id] = self._context.steady() + RETRY_NS
        context, name = self._context, volume.name

        def failed(reason: str) -> None:
            text = f"the weekly scrub of volume {name} has not begun: {reason}; it is tried again"
            context.events.add_once("warning", text, volume=name)

        with isolate(context, f"the weekly scrub of volume {name}", failed):
            self.begin(name, RATE_DEFAULT)

    def _run_weekly(self) -> None:
        while not self._stopping.is_set():
            with isolate(self._context, "looking for weekly scrubs that are due"):
                self._begin_weekly()
            self._look.wait(_LOOK_S)
            self._look.clear()

    def _run(self, volume: Volume, scrub: _Running) -> None:
        context = self._context
        state: ScrubState = "failed"
        reasons: list[str] = []
        with isolate(context, f"scrubbing volume {volume.name}", reasons.append):
            state = "done" if self._read_all(volume, scrub) else "stopped"
        now = context.clock()
        view = replace(scrub.view, state=state, reason=next(iter(reasons), None), ended=iso(now))
        if state == "done":
            with isolate(context, f"keeping the scrub of volume {volume.name}", reasons.append):
                context.catalog.scrubs.keep(volume.id, now, json.dumps(asdict(view)))
            view = replace(view, reason=next(iter(reasons), None))
        with self._lock:
            if state == "done":
                self._due_at[volume.id] = self._context.steady() + WEEK_NS
            self._ended[volume.id] = view
            self._running.pop(volume.id, None)
        self._look.set()

    def _read_all(self, volume: Volume, scrub: _Running) -> bool:
        """Read everything; False if it was asked to stop."""
        context = self._context
        rate = scrub.view.rate
        began = time.monotonic()
        names = context.device_names()
        for number in range(volume.partition_count):
            cursor: tuple[int, int] | None = (0, 0)
            while cursor is not None:
                step = max(4096, rate // _STEPS_A_SECOND)
                report = context.engine.scrub(volume.id, number, cursor, step)
                cursor = report["next"]
                scrub.moved_s = time.monotonic()
                view = scrub.view
                bad = [self._bad_view(volume, number, found, names) for found in report["bad"]]
                scrub.view = replace(
                    view,
                    done=view.done + report["bytes"],
                    skipped=view.skipped + report["skipped_bytes"],
                    bad_blocks=view.bad_blocks + len(bad),
                    bad=(view.bad + bad)[:_LISTED_MAX],
                )
                # Partitions without slots cost nothing, and are not waited for.
                ahead = scrub.view.done / rate - (time.monotonic() - began)
                if scrub.stop_requested.wait(max(0.0, ahead)):
                    return False
        return True

    def _bad_view(
        self, volume: Volume, partition: int, bad: "ScrubBad", names: dict[int, str]
    ) -> ScrubBadBlockView:
        epochs = {record.epoch: record.name for record in self._context.catalog.snapshots.of(volume.id)}
        seen_by = [volume.name] if bad["live"] else []
        seen_by += [
            export_name(volume.name, epochs[epoch]) for epoch in map(Epoch, bad["epochs"]) if epoch in epochs
        ]
        reason = "its checksum does not match" if bad["errno"] == 0 else reason_of(bad["errno"])
        return ScrubBadBlockView(
            partition=partition,
            block=bad["block"],
            device=names.get(bad["device"], "?"),
            reason=reason,
            seen_by=seen_by,
        )
