"""Schedules: snapshots that polyvold takes automatically, and which of them it keeps.

How it works      One thread finds schedules that are due, and workers run them (workers.py): a disk or a
                  command that hangs delays no other schedule. A run takes the snapshot, records what was due
                  as done, then deletes what no rule keeps (snapshot/retention.py). Runs missed while polyvold
                  was down, or that failed, are made up once. due_times.py knows when each is due, also when
                  the clock is set.
Invariants        SD1 a failure of one schedule does not stop others; SD2 snapshots made by hand or with holds
                  are never deleted; SD3 after a kill between a snapshot and its record no second one is
                  taken: the newest snapshot of a schedule also says until when it is done; SD4 a schedule
                  runs in one thread at a time; SD5 a run does not delete the snapshot that it has just taken.
Owner and locks   `_looking` over a look at all schedules, `_lock` over failures. A run takes the locks of the
                  volumes that it acts on.
Errors            A failure is a warning in the log and an event, once for each due time and reason; it is
                  kept in the schedule, and retried after RETRY_NS.
"""

import contextlib
import logging
import threading
from dataclasses import replace
from functools import partial

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.errors import Restoring, SnapshotInUse, VolumeBusy
from polyvol.daemon.groups.verbs import Members
from polyvol.daemon.hooks.run import checked_hooks, hook_view
from polyvol.daemon.isolation import isolate, reason_of
from polyvol.daemon.schedules.dry_run import AHEAD_S_MAX, plan
from polyvol.daemon.schedules.due_times import DueTimes
from polyvol.daemon.schedules.facts import done_until, note_of, records_of, target_of, timing_of
from polyvol.daemon.sizes import format_seconds
from polyvol.daemon.snapshots.taker import SnapshotTaker
from polyvol.daemon.snapshots.verbs import Snapshots
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.schedules import (
    RetainedSnapshotView,
    ScheduleAdd,
    SchedulePlanView,
    ScheduleSet,
    ScheduleView,
)
from polyvol.daemon.workers import Workers
from polyvol.mapping.catalog.schedules import new_schedule
from polyvol.mapping.errors import PolyvolError, UnknownVolume
from polyvol.mapping.names import PREFIX_LENGTH_MAX, check_free, check_name, name_from, unique_name
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.errors.holds import SnapshotHeld
from polyvol.snapshot.errors.schedules import BadSchedule, UnknownSchedule
from polyvol.snapshot.retention import Keep, kept, may_go
from polyvol.snapshot.snapshot import export_name
from polyvol.snapshot.timing import EVERY_S_MAX, SECOND_NS, check_cron

RETRY_NS = 60 * SECOND_NS
LONG_RUN_NS = 60 * SECOND_NS
"""How long a run may take before there is a warning."""
RETAIN_WAIT_S = 5.0
"""How long a run waits for a volume that it deletes a snapshot of."""
STOP_S = 5.0
"""How long a stop waits for the runs under way."""
LOOK_S = 20.0
"""How often to look at the clock, which may have been set."""
_FIRST = 5
_log = logging.getLogger("polyvol")


class Schedules:
    """The verbs of schedules, and their runner."""

    def __init__(self, context: Context, snapshots: Snapshots, taker: SnapshotTaker) -> None:
        self._context = context
        self._snapshots = snapshots
        self._taker = taker
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._workers = Workers("polyvol-schedule-run")
        self._dues = DueTimes(context.clock, context.steady)
        self._retry_at: dict[int, int] = {}  # by the steady clock
        self._begun: dict[int, int] = {}  # by the steady clock: when the last run was begun
        self._told: dict[int, tuple[int, set[str]]] = {}
        self._look = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polyvol-schedule", daemon=True)

    def start(self) -> None:
        """Start running due schedules."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no more runs, and wait for those in progress for a bounded time; idempotent."""
        self._stopping.set()
        self._look.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._workers.stop(STOP_S):
            _log.warning("runs of schedules are left behind: they do not end")

    def wait(self) -> None:
        """Wait for the runs under way."""
        self._workers.wait()

    # The verbs

    def add(self, request: ScheduleAdd) -> ScheduleView | SchedulePlanView:
        """Make a schedule, or with `dry_run` only tell what it would keep."""
        hooks = None if request.hooks is None else checked_hooks(request.hooks)
        if request.dry_run:
            return self._plan_of(request)
        with self._context.catalog_lock:
            schedule = self._context.catalog.schedules.add(self._checked(request), hooks)
            self._dues.done(schedule.id, timing_of(schedule))
        view = self._view(schedule, snapshots=True)
        _log.info("schedule %s was added", schedule.name, extra={"SCHEDULE": schedule.name})
        self._look.set()
        return view

    @reads
    def list_all(self) -> list[ScheduleView]:
        """All schedules."""
        return [self._view(schedule) for schedule in self._context.catalog.schedules.all()]

    @reads
    def show(self, name: str) -> ScheduleView:
        """One schedule, with its snapshots."""
        return self._view(self._find(name), snapshots=True)

    def change(self, name: str, request: ScheduleSet) -> ScheduleView:
        """Pause a schedule, or resume it; what was due while it was paused is not made up."""
        with self._context.catalog_lock:
            schedule = self._find(name)
            if schedule.paused != request.paused:
                now = self._context.clock()
                self._context.catalog.schedules.set_paused(schedule.id, request.paused, now)
                schedule = replace(schedule, paused=request.paused, last_ns=now)
                if request.paused:
                    self._dues.forget(schedule.id)
                else:
                    self._dues.done(schedule.id, timing_of(schedule))
                verb = "paused" if request.paused else "resumed"
                _log.info("schedule %s was %s", name, verb, extra={"SCHEDULE": name})
        self._look.set()
        return self._view(schedule, snapshots=True)

    def remove(self, name: str) -> ScheduleView:
        """Remove a schedule; its snapshots stay."""
        found = self._find(name)
        view = self._view(found, snapshots=True)
        with self._context.catalog_lock:
            schedule = self._find(name)
            if schedule.id != found.id:  # it was removed, and another one has its name
                raise UnknownSchedule(name=name)
            self._context.catalog.schedules.forget(schedule.id)
            self._dues.forget(schedule.id)
        _log.info("schedule %s was removed", name, extra={"SCHEDULE": name})
        return view

    # Running

    def run_due(self) -> int | None:
        """Run everything that is due, and wait for it; when something is due next (ns since 1970), None if
        nothing is."""
        self.begin_due()
        self.wait()
        return self.begin_due()

    def begin_due(self) -> int | None:
        """Begin to run everything that is due; when something is due next (ns since 1970), None if nothing
        is."""
        following: list[int] = []
        with self._looking:
            self._look_at_clock()
            for schedule in self._context.catalog.schedules.all():
                if self._stopping.is_set():
                    break
                what, name = f"schedule {schedule.name}", schedule.name
                with isolate(self._context, f"looking at {what}", SCHEDULE=name):  # SD1
                    reasons: list[str] = []
                    due = None
                    with isolate(self._context, what, reasons.append):
                        due = self._look_at(schedule)
                    for reason in reasons:
                        due = self._failed(schedule, schedule.last_ns, reason)
                    if due is not None:
                        following.append(due)
        return min(following, default=None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = LOOK_S
            with isolate(self._context, "looking for schedules that are due"):
                following = self.begin_due()
                if following is not None:
                    wait_s = min(LOOK_S, max(0.05, (following - self._context.clock()) / SECOND_NS))
            self._look.wait(wait_s)
            self._look.clear()

    def _look_at(self, schedule: Schedule) -> int | None:
        """Run a schedule if it is due; when it is due next."""
        if schedule.paused:
            return None
        due, now = self._planned(schedule)
        if due is None or due > now:
            return due
        if self._workers.busy(schedule.id):  # SD4
            with self._lock:
                begun = self._begun.get(schedule.id)
            if begun is not None and self._context.steady() - begun > LONG_RUN_NS:
                self._tell(schedule, due, "the run before, or this one, has not ended yet")
            return now + RETRY_NS
        with self._lock:  # after `busy`: a run that has just failed has noted when to try again
            wait_ns = self._retry_at.get(schedule.id, 0) - self._context.steady()
            if wait_ns > 0:
                return now + wait_ns
            self._begun[schedule.id] = self._context.steady()
        self._workers.run(schedule.id, partial(self._run_apart, schedule, due))
        return timing_of(schedule).after(now)

    def _look_at_clock(self) -> None:
        """Report that the clock was set."""
        jump = self._dues.look()
        if jump:
            way = "forward" if jump > 0 else "back"
            text = (
                f"the clock was set {way} by {format_seconds(abs(jump) // SECOND_NS)}, to"
                f" {iso(self._context.clock())}: schedules go on from there"
            )
            self._context.events.add("warning", text)

    def _planned(self, schedule: Schedule) -> tuple[int | None, int]:
        """When a schedule is due, planned if it is not yet, and what the wall clock says."""
        if not self._dues.planned(schedule.id):
            self._dues.plan(schedule.id, timing_of(schedule), done_until(self._context, schedule))
            note = note_of(self._context, schedule)
            if note is not None:
                text = f"schedule {schedule.name}: {note}; it goes on"
                self._context.events.add("warning", text, SCHEDULE=schedule.name)
        return self._dues.due_and_now(schedule.id)

    def _run_apart(self, schedule: Schedule, due: int) -> None:
        def failed(reason: str) -> None:
            self._failed(schedule, due, reason)

        with (
            isolate(self._context, f"running schedule {schedule.name}", SCHEDULE=schedule.name),
            isolate(self._context, f"schedule {schedule.name}", failed),
        ):
            now = self._context.catalog.schedules.get(schedule.id)
            if now is not None and not now.paused:
                still, clock = self._planned(now)
                if still is not None and still <= clock:  # else it has just run
                    self._run_one(now, still)
        self._look.set()

    def _run_one(self, schedule: Schedule, due: int) -> None:
        """One run."""
        try:
            self._taker.take_of_schedule(schedule)
        except UnknownSchedule:
            return  # it was removed in between
        except (PolyvolError, self._context.engine_error) as error:
            reason = error.message if isinstance(error, PolyvolError) else str(error)
            self._failed(schedule, due, reason)
            return
        self._context.catalog.schedules.set_ran(schedule.id, self._context.clock())
        self._dues.done(schedule.id, timing_of(schedule))
        with self._lock:
            self._retry_at.pop(schedule.id, None)
            self._told.pop(schedule.id, None)
        self._retain(schedule)

    def _failed(self, schedule: Schedule, due: int, reason: str) -> int:
        """Report a failed run, once for each due time and reason; when to retry."""
        now = self._context.clock()
        again = min(now + RETRY_NS, timing_of(schedule).after(now) or now + RETRY_NS)
        with self._lock:
            self._retry_at[schedule.id] = self._context.steady() + again - now
        self._tell(schedule, due, f"{reason}; it tries again", reason)
        return again

    def _tell(self, schedule: Schedule, due: int, why: str, reason: str | None = None) -> None:
        """Report why there is no snapshot of a due time, once for each; `reason`: as the schedule stores
        it."""
        reason = reason or why
        with self._lock:
            told_due, reasons = self._told.get(schedule.id, (due, set()))
            if told_due != due:
                reasons = set()
            known = reason in reasons
            self._told[schedule.id] = (due, reasons | {reason})
        if not known:
            text = f"schedule {schedule.name} could not take its snapshot of {iso(due)}: {why}"
            volume = None if schedule.volume is None else target_of(self._context, schedule)
            self._context.events.add("warning", text, volume=volume, SCHEDULE=schedule.name)
        with contextlib.suppress(PolyvolError):
            errors = {each.id: each.error for each in self._context.catalog.schedules.all()}
            if errors.get(schedule.id, reason) != reason:
                self._context.catalog.schedules.set_failed(schedule.id, reason)

    def _retain(self, schedule: Schedule) -> None:
        """Delete what no rule keeps any more."""
        records = records_of(self._context, schedule)
        instants = [record.instant_ns for record in records]
        wanted = kept(instants, Keep(**schedule.keep), self._context.clock())  # SD5: the newest is in it
        for number, record in enumerate(records):
            if number in wanted or not may_go(record):  # SD2
                continue
            export = ""
            members: Members = []
            try:
                members = self._snapshots.members(record)
                concerned = [volume for volume, _ in members]
                with self._context.holding_all(concerned, "snapshot delete", wait_s=RETAIN_WAIT_S):
                    # Since the look above it may have been held, or deleted.
                    now = {each.uuid: each for each in records_of(self._context, schedule)}.get(record.uuid)
                    if now is None or not may_go(now):
                        continue
                    members = self._snapshots.members(now)
                    export = ", ".join(export_name(volume.name, each.name) for volume, each in members)
                    self._snapshots.delete_cut(members)
            except (SnapshotInUse, SnapshotHeld, Restoring, VolumeBusy):
                continue  # a later run finds it again
            except UnknownVolume:
                continue  # it went with its volume
            except Exception as error:
                if not isinstance(error, PolyvolError | OSError):
                    _log.exception("schedule %s", schedule.name, extra={"SCHEDULE": schedule.name})
                reason = reason_of(self._context, error)
                text = f"schedule {schedule.name} could not delete snapshot {record.name}: {reason}"
                self._context.events.add("warning", text, SCHEDULE=schedule.name)
                continue
            for volume, each in members:
                fields = {"VOLUME": volume.name, "SNAPSHOT": each.name, "SCHEDULE": schedule.name}
                _log.info("snapshot %s was deleted: no rule keeps it", export, extra=fields)

    # Views of schedules

    def _find(self, name: str) -> Schedule:
        schedule = self._context.catalog.schedules.find(name)
        if schedule is None:
            raise UnknownSchedule(name=name)
        return schedule

    def _checked(self, request: ScheduleAdd) -> Schedule:
        """The requested schedule, or the error that refuses it."""
        catalog = self._context.catalog
        volume, group = self._resolve(request.target)
        wrong = request.keep.wrong()
        if (request.every_s is None) == (request.cron is None):
            wrong = "give either an interval or a cron expression"
        elif request.every_s is not None and not 1 <= request.every_s <= EVERY_S_MAX:
            wrong = f"an interval of {request.every_s} s is not from 1 s to {EVERY_S_MAX // 86_400} days"
        elif len(request.prefix) > PREFIX_LENGTH_MAX:
            wrong = f"the prefix {request.prefix!r} is longer than {PREFIX_LENGTH_MAX} characters"
        elif request.cron is not None:
            try:
                check_cron(request.cron)
            except ValueError as error:
                wrong = str(error)
        if wrong is not None:
            raise BadSchedule(why=wrong)
        check_name("snapshot", request.prefix)
        taken = {schedule.name for schedule in catalog.schedules.all()}
        if request.name is None:
            name = unique_name(name_from(f"{request.target.lstrip('@')}-{request.prefix}", "schedule"), taken)
        else:
            name = check_free("schedule", request.name, taken)
        return new_schedule(
            name,
            volume=None if volume is None else volume.id,
            group=group,
            every_s=request.every_s,
            cron=request.cron,
            keep=request.keep.rules(),
            prefix=request.prefix,
            now_ns=self._context.clock(),
        )

    def _resolve(self, target: str) -> tuple[Volume | None, int | None]:
        """The volume, or the group by id, that a target names."""
        if target.startswith("@"):
            return None, self._context.find_group(target[1:]).id
        volume = self._context.find_volume(target)
        if volume.state != "ready":
            self._context.refuse_not_served(volume, restoring=True)
        return volume, None

    @reads
    def _plan_of(self, request: ScheduleAdd) -> SchedulePlanView:
        schedule = self._checked(request)
        if request.ahead_s is not None and not 0 <= request.ahead_s <= AHEAD_S_MAX:
            why = f"{request.ahead_s} s cannot be looked ahead: give up to {AHEAD_S_MAX // 86_400} days"
            raise BadSchedule(why=why)
        return self._plan(schedule, request.ahead_s)

    def _plan(self, schedule: Schedule, ahead_s: int | None) -> SchedulePlanView:
        """What would be kept of a schedule that begins now, and of its namesake's snapshots."""
        now = self._context.clock()
        timing = timing_of(schedule)
        there = records_of(self._context, schedule)
        found = plan(timing, Keep(**schedule.keep), [each.instant_ns for each in there], now, ahead_s)
        instants = [*(record.instant_ns for record in there), *found.dues]
        held = {number for number, record in enumerate(there) if not may_go(record)}
        return SchedulePlanView(
            name=schedule.name,
            target=target_of(self._context, schedule),
            timing=str(timing),
            keep=dict(schedule.keep),
            first=[iso(due) for due in found.dues[:_FIRST]],
            until=iso(found.until),
            runs=len(found.dues),
            note=found.note,
            kept=[
                self._retained(instants[number], found.kept.get(number, []), record)
                for number in sorted({*held, *found.kept})
                for record in [there[number] if number < len(there) else None]
            ],
        )

    @reads
    def _view(self, schedule: Schedule, *, snapshots: bool = False) -> ScheduleView:
        records = records_of(self._context, schedule)
        instants = [record.instant_ns for record in records]
        reasons = kept(instants, Keep(**schedule.keep), self._context.clock())
        timing = timing_of(schedule)
        due = None if schedule.paused else self._dues.due(schedule.id)
        if not schedule.paused and not self._dues.planned(schedule.id):
            due = timing.after(done_until(self._context, schedule))
        hooks = self._context.catalog.hooks.of_schedule(schedule.id)
        return ScheduleView(
            name=schedule.name,
            target=target_of(self._context, schedule),
            timing=str(timing),
            every_s=schedule.every_s,
            cron=schedule.cron,
            keep=dict(schedule.keep),
            prefix=schedule.prefix,
            paused=schedule.paused,
            last=iso(schedule.last_ns),
            next=None if due is None else iso(due),
            error=schedule.error,
            note=note_of(self._context, schedule),
            hooks=hook_view(hooks),
            count=len(records),
            created=iso(schedule.created_ns),
            snapshots=[
                self._retained(record.instant_ns, reasons.get(number, []), record)
                for number, record in enumerate(records)
            ]
            if snapshots
            else None,
        )

    def _retained(self, instant: int, why: list[str], record: SnapshotRecord | None) -> RetainedSnapshotView:
        return RetainedSnapshotView(
            snapshot=None if record is None else record.name,
            instant=iso(instant),
            instant_ns=instant,
            kept_by=why,
            holds=[] if record is None else list(record.holds),
            future=record is not None and instant > self._context.clock(),
        )
