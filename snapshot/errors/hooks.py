"""Errors of hooks, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class BadHooks(PolyvolError):
    """Invalid hooks."""

    code = "bad-hooks"
    kind = "invalid"
    sentence = "the hooks are not valid: {why}"
    hint = "docs/snapshots.md describes hooks"


class HooksFailed(PolyvolError):
    """Required hooks of a snapshot failed."""

    code = "hooks-failed"
    kind = "busy"
    sentence = "no snapshot of {volumes} was taken: {why}"
    hint = "correct the hooks, or leave out --require-hooks and accept a crash-consistent snapshot"


class SnapshotFromHook(PolyvolError):
    """A hook command requests a snapshot of a volume that has hooks, or has hooks in progress."""

    code = "snapshot-from-hook"
    kind = "invalid"
    sentence = "volume {name} {why}, and a hook command cannot take a snapshot of it"
    hint = "leave it out of the command: the snapshot is taken when the quiesce commands have ended"


class HooksBusy(PolyvolError):
    """Too many snapshots are running hooks."""

    code = "hooks-busy"
    kind = "busy"
    sentence = "the hooks of {count} other snapshots are still running"
    hint = "try again when they have ended, and check that they do not hang"


class VolumeChanged(PolyvolError):
    """A volume that changed while the hooks of its snapshot ran."""

    code = "volume-changed"
    kind = "busy"
    sentence = "volume {name} has changed while its snapshot was prepared: {why}"
    hint = "no snapshot was taken; take it again if you want one of what is there now"
