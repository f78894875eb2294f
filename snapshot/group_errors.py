"""Errors of groups, holds, schedules and hooks; their form is that of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class UnknownGroup(PolyvolError):
    """No group of this name."""

    code = "unknown-group"
    kind = "not-found"
    sentence = "there is no group {name!r}"
    hint = "`polyvol group list` shows those that exist"


class UnknownGroupSnapshot(PolyvolError):
    """No snapshot of this name of a group."""

    code = "unknown-group-snapshot"
    kind = "not-found"
    sentence = "there is no snapshot {name!r} of group {group}"
    hint = "`polyvol snapshot list @{group}` shows those that exist"


class GroupEmpty(PolyvolError):
    """A group without volumes, of which there can be no snapshot."""

    code = "group-empty"
    kind = "invalid"
    sentence = "group {name} has no volumes"
    hint = "`polyvol group join {name} VOLUME` puts one into it"


class GroupChanged(PolyvolError):
    """A group whose volumes are others than before the hooks of its snapshot ran."""

    code = "group-changed"
    kind = "busy"
    sentence = "group {name} has changed while its snapshot was prepared: {why}"
    hint = "no snapshot was taken; take it again if you want one of the group as it is now"


class VolumeChanged(PolyvolError):
    """A volume that is not the same any more as before the hooks of its snapshot ran."""

    code = "volume-changed"
    kind = "busy"
    sentence = "volume {name} has changed while its snapshot was prepared: {why}"
    hint = "no snapshot was taken; take it again if you want one of what is there now"


class GroupHasSnapshots(PolyvolError):
    """A group that cannot be deleted, as it has snapshots."""

    code = "group-has-snapshots"
    kind = "busy"
    sentence = "group {name} has {snapshots}"
    hint = "delete what `polyvol snapshot list @{name}` shows first"


class NotInGroup(PolyvolError):
    """A volume that is to leave a group that it is not in."""

    code = "not-in-group"
    kind = "not-found"
    sentence = "volume {volume} is not in group {name}"
    hint = "`polyvol group show {name}` shows which are"


class VolumeInGroup(PolyvolError):
    """A volume that cannot be deleted, as a group, or a group's snapshot, has it."""

    code = "volume-in-group"
    kind = "busy"
    sentence = "volume {name} is in {what}"
    hint = "{cure} first"


class SnapshotInGroup(PolyvolError):
    """A snapshot that belongs to one of a group, which is held, released and deleted as a whole."""

    code = "snapshot-in-group"
    kind = "busy"
    sentence = "snapshot {name} is part of {whole}"
    hint = "name {whole}, which is meant as a whole"


class SnapshotHeld(PolyvolError):
    """A snapshot that may not be deleted."""

    code = "snapshot-held"
    kind = "busy"
    sentence = "snapshot {name} is held ({tags})"
    hint = "`polyvol snapshot release {name} --tag TAG` ends a hold"


class VolumeHeld(PolyvolError):
    """A volume that may not be deleted, as a snapshot of it is held."""

    code = "volume-held"
    kind = "busy"
    sentence = "volume {name} has snapshots that are held: {snapshots}"
    hint = "release them first with `polyvol snapshot release`"


class NotHeld(PolyvolError):
    """A hold that is to end, and is not there."""

    code = "not-held"
    kind = "not-found"
    sentence = "snapshot {name} is not held by {tag!r}"
    hint = "`polyvol snapshot show {name}` shows its holds"


class UnknownSchedule(PolyvolError):
    """No schedule of this name."""

    code = "unknown-schedule"
    kind = "not-found"
    sentence = "there is no schedule {name!r}"
    hint = "`polyvol schedule list` shows those that exist"


class BadSchedule(PolyvolError):
    """A schedule that makes no sense."""

    code = "bad-schedule"
    kind = "invalid"
    sentence = "this cannot be a schedule: {why}"
    hint = "docs/snapshots.md tells how schedules are given"


class BadHooks(PolyvolError):
    """Hooks that make no sense."""

    code = "bad-hooks"
    kind = "invalid"
    sentence = "these cannot be hooks: {why}"
    hint = "docs/snapshots.md tells how hooks are given"


class HooksFailed(PolyvolError):
    """Hooks that had to succeed for a snapshot, and did not."""

    code = "hooks-failed"
    kind = "busy"
    sentence = "no snapshot of {volumes} was taken: {why}"
    hint = "correct the hooks, or leave out --require-hooks and accept a crash-consistent snapshot"


class SnapshotFromHook(PolyvolError):
    """A hook command asks for a snapshot of a volume that has hooks, or has hooks under way."""

    code = "snapshot-from-hook"
    kind = "invalid"
    sentence = "volume {name} {why}, and a hook command cannot take a snapshot of it"
    hint = "leave it out of the command: the snapshot is taken when the quiesce commands have ended"


class HooksBusy(PolyvolError):
    """Too many snapshots that are at their hooks."""

    code = "hooks-busy"
    kind = "busy"
    sentence = "the hooks of {count} other snapshots are still running"
    hint = "try again when they have ended, and check that they do not hang"
