"""Errors of schedules, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class UnknownSchedule(PolyvolError):
    """No schedule of this name."""

    code = "unknown-schedule"
    kind = "not-found"
    sentence = "there is no schedule {name!r}"
    hint = "`polyvol schedule list` shows those that exist"


class ScheduleHasNamesake(PolyvolError):
    """A name for a schedule that snapshots of an earlier schedule have: it would delete them."""

    code = "schedule-has-namesake"
    kind = "exists"
    sentence = "an earlier schedule {name} has left snapshots of the same volume or group"
    hint = "choose another name, or delete these snapshots first"


class BadSchedule(PolyvolError):
    """An invalid schedule."""

    code = "bad-schedule"
    kind = "invalid"
    sentence = "the schedule is not valid: {why}"
    hint = "docs/snapshots.md describes schedules"
