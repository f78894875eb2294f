"""Facts of a schedule: what the catalog says of it, and what follows from that.

Owner and locks   None: they read the catalog. A caller that needs several of them of one instant reads within
                  `context.reading()`.
"""

from uuid import UUID

from polyvol.daemon.context import Context
from polyvol.daemon.types.base import WHY_FUTURE, iso
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.snapshot.timing import Timing


def timing_of(schedule: Schedule) -> Timing:
    """When a schedule is due."""
    return Timing(schedule.every_s, schedule.cron)


def target_of(context: Context, schedule: Schedule) -> str:
    """What a schedule takes snapshots of: VOLUME or @GROUP; '?' if it has gone."""
    catalog = context.catalog
    if schedule.group is not None:
        names = {group.id: group.name for group in catalog.groups.all()}
        return f"@{names.get(schedule.group, '?')}"
    volume = None if schedule.volume is None else catalog.volumes.get(schedule.volume)
    return "?" if volume is None else volume.name


def records_of(context: Context, schedule: Schedule) -> list[SnapshotRecord]:
    """What is there of a schedule, in the order of epochs; of a group's snapshots one member each."""
    catalog = context.catalog
    if schedule.volume is not None:
        found = catalog.snapshots.of(schedule.volume)
        return [record for record in found if record.schedule == schedule.name]
    with context.reading():
        cuts = [whole.cut for whole in catalog.groups.snapshots(schedule.group)]
        one_each: dict[UUID, SnapshotRecord] = {}
        for record in catalog.snapshots.all():
            if record.schedule == schedule.name:
                one_each.setdefault(record.cut, record)
    return [one_each[cut] for cut in cuts if cut in one_each]


def done_until(context: Context, schedule: Schedule) -> int:
    """By the catalog: what was due until then (ns since 1970) is done. Never in the future."""
    now = context.clock()
    newest = [record.instant_ns for record in records_of(context, schedule)[-1:] if record.instant_ns <= now]
    return max(min(schedule.last_ns, now), *newest, 0)  # SD3


def note_of(context: Context, schedule: Schedule) -> str | None:
    """The note about a schedule's times, as a clause."""
    if schedule.last_ns <= context.clock():
        return None
    return f"what it says to have done until {iso(schedule.last_ns)} lies in the future, {WHY_FUTURE}"
