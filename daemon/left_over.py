"""Left over: steps that a failed verb could not undo.

How it works      The coordinator of cuts reports each step that failed while it undid a cut or ended a
                  rollback. The step becomes an event, and a note in status until the volume is deleted or
                  polyvold restarts: a start sets the engine and the exports to the state in the catalog.
Errors            None.
"""

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import logged_reason
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import Coordinator


def coordinator(context: Context) -> Coordinator:
    """A coordinator whose failures are reported."""

    def left_over(volume: Volume | None, what: str, error: Exception) -> None:
        step = what if volume is None else f"{what} of volume {volume.name}"
        reason = logged_reason(context, step, error)
        sentence = f"{step} failed: {reason}; a restart of polyvold clears up what is left of that"
        context.left_over[None if volume is None else volume.id, what] = sentence
        context.events.add("warning", sentence, volume=None if volume is None else volume.name)

    return Coordinator(context.engine, context.catalog, left_over)


def left_over_notes(context: Context) -> list[str]:
    """The steps left over of volumes that still exist, a sentence each."""
    there = {None, *(volume.id for volume in context.catalog.volumes.all())}
    return [sentence for (volume, _), sentence in list(context.left_over.items()) if volume in there]
