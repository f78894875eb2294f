"""Checkpoints: what is reported of a volume whose checkpoints fail.

How it works      The engine makes a checkpoint again that failed, after 2 s and then after longer and longer.
                  Until one succeeds nothing is lost, but the journals grow, and a start takes longer. The
                  engine knows whether the last one failed: it is asked each time.
Errors            None.
"""

from polyvol.daemon.context import Context
from polyvol.mapping.os_errors import reason_of


def checkpoint_trouble(context: Context, volume: int) -> str | None:
    """What is wrong with the checkpoints of a volume, as a clause, or None."""
    try:
        number = context.engine.space(volume)["checkpoint_errno"]
    except context.engine_error:
        return None  # it is not served, or was closed in the meantime
    if not number:
        return None
    return (
        f"its last checkpoint failed: {reason_of(number)}; it is tried again, and its journals grow until one"
        " succeeds"
    )


def tell_checkpoint(context: Context, identity: int) -> None:
    """Report as an event that a volume's checkpoint failed, or that one was written again."""
    volume = next((each for each in context.catalog.volumes.all() if each.id == identity), None)
    if volume is None:
        return
    trouble = checkpoint_trouble(context, identity)
    name = volume.shown_name
    if trouble is None:
        text = f"volume {name}: its checkpoints are written again"
        context.events.add("info", text, volume=name)
    else:
        context.events.add("warning", f"volume {name}: {trouble}", volume=name)
