"""Errors of taking snapshots; their form is that of mapping/errors.py."""

from collections.abc import Sequence

from polyvol.mapping.errors import PolyvolError, kind_of

_FAULTY = "see `polyvol status` for devices with errors, then try again"
_NO_ROOM = "`polyvol status` says where no room is left; free some there, or delete snapshots, then try again"


class CutFailed(PolyvolError):
    """A cut that was undone, as far as `undo_failed_on` is empty."""

    code = "cut-failed"
    sentence = "the snapshot of {volumes} could not be made: {cause}{rest}"
    hint = "{todo}"

    def __init__(self, *, volumes: str, cause: BaseException, undo_failed_on: Sequence[str]) -> None:
        rest = ""
        if undo_failed_on:
            left = ", ".join(undo_failed_on)
            rest = f" (and what was begun could not be undone on {left}; a restart of polyvold does that)"
        full = kind_of(cause) == "no-space"
        super().__init__(volumes=volumes, cause=cause, rest=rest, todo=_NO_ROOM if full else _FAULTY)
        self.cause = cause
        if full:
            self.kind = "no-space"
        self.undo_failed_on = tuple(undo_failed_on)
