"""Errors of hooks, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class BadHooks(PolyvolError):
    """Hooks that make no sense."""

    code = "bad-hooks"
    kind = "invalid"
    sentence = "the hooks are not valid: {why}"
    hint = "docs/snapshots.md describes hooks"


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


class VolumeChanged(PolyvolError):
    """A volume that is not the same any more as before the hooks of its snapshot ran."""

    code = "volume-changed"
    kind = "busy"
    sentence = "volume {name} has changed while its snapshot was prepared: {why}"
    hint = "no snapshot was taken; take it again if you want one of what is there now"
