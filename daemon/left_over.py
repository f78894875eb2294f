"""Left over: what a verb that failed could not undo.

How it works      The coordinator of cuts tells of each step that failed while it undid a cut, or ended a
                  rollback. That is an event, and a note in status until the volume is gone or polyvold has
                  been restarted: a start makes the engine and the exports what the catalog says.
Errors            None.
"""

import logging

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import reason_of
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import Coordinator

_log = logging.getLogger("polyvol")


def coordinator(context: Context) -> Coordinator:
    """A coordinator whose failures are reported."""

    def left_over(volume: Volume | None, what: str, error: Exception) -> None:
        of = "" if volume is None else f" of volume {volume.name}"
        sentence = (
            f"{what}{of} failed: {reason_of(context, error)}; a restart of polyvold clears up what is left of"
            " that"
        )
        context.left_over[None if volume is None else volume.id, what] = sentence
        context.events.add("warning", sentence, volume=None if volume is None else volume.name)
        if not isinstance(error, (PolyvolError, OSError, context.engine_error)):
            _log.error("%s%s", what, of, exc_info=error)

    return Coordinator(context.engine, context.catalog, left_over)


def left_over_notes(context: Context) -> list[str]:
    """What is left over of volumes that are still there, a sentence each."""
    there = {None, *(volume.id for volume in context.catalog.volumes.all())}
    return [sentence for (volume, _), sentence in list(context.left_over.items()) if volume in there]
