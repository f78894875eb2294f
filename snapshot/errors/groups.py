"""Errors of groups, in the form of mapping/errors.py."""

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
    """A group whose volumes changed while the hooks of its snapshot ran."""

    code = "group-changed"
    kind = "busy"
    sentence = "group {name} has changed while its snapshot was prepared: {why}"
    hint = "no snapshot was taken; take it again if you want one of the group as it is now"


class GroupHasSnapshots(PolyvolError):
    """A group that cannot be deleted because it has snapshots."""

    code = "group-has-snapshots"
    kind = "busy"
    sentence = "group {name} has {snapshots}"
    hint = "delete what `polyvol snapshot list @{name}` shows first"


class NotInGroup(PolyvolError):
    """A request to remove a volume from a group that it is not in."""

    code = "not-in-group"
    kind = "not-found"
    sentence = "volume {volume} is not in group {name}"
    hint = "`polyvol group show {name}` shows which are"


class VolumeInGroup(PolyvolError):
    """A volume that cannot be deleted because a group, or a group's snapshot, has it."""

    code = "volume-in-group"
    kind = "busy"
    sentence = "volume {name} is in {what}"
    hint = "{cure} first"


class SnapshotInGroup(PolyvolError):
    """A snapshot that belongs to one of a group, which is held, released and deleted as a whole."""

    code = "snapshot-in-group"
    kind = "busy"
    sentence = "snapshot {name} is part of {whole}"
    hint = "name {whole}, instead of its members"
