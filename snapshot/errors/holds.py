"""Errors of holds of snapshots, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class SnapshotHeld(PolyvolError):
    """A snapshot that may not be deleted."""

    code = "snapshot-held"
    kind = "busy"
    sentence = "snapshot {name} is held ({tags})"
    hint = "`polyvol snapshot release {name} --tag TAG` ends a hold"


class VolumeHeld(PolyvolError):
    """A volume that may not be deleted because a snapshot of it is held."""

    code = "volume-held"
    kind = "busy"
    sentence = "volume {name} has snapshots that are held: {snapshots}"
    hint = "release them first with `polyvol snapshot release`"


class NotHeld(PolyvolError):
    """A request to end a hold that does not exist."""

    code = "not-held"
    kind = "not-found"
    sentence = "snapshot {name} is not held by {tag!r}"
    hint = "`polyvol snapshot show {name}` shows its holds"
