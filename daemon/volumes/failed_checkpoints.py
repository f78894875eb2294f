"""Failed checkpoints: what is reported of a volume whose checkpoints fail.

How it works      The engine retries a failed checkpoint, after 2 s and then after longer and longer
                  (engine/src/processor/share/checkpoint.rs). Until one succeeds nothing is lost, but the
                  journals grow, and a start takes longer. The engine knows whether the last one failed: it is
                  asked each time. Each processor has its own checkpoints, and reports them: an event is
                  added only for what is news of the volume.
Errors            None.
"""

from polyvol.daemon.context import Context
from polyvol.mapping.ids import VolumeId
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


def tell_checkpoint(context: Context, identity: int, told: dict[int, str]) -> None:
    """Report as an event that a volume's checkpoint failed, or that one was written again, unless it is what
    was told of it last; `told`: that, by volume."""
    volume = context.catalog.volumes.get(VolumeId(identity))
    if volume is None or not context.is_served(volume):
        return  # whether one succeeds is not known any more
    trouble = checkpoint_trouble(context, identity)
    if trouble == told.get(identity):
        return
    name = volume.shown_name
    if trouble is None:
        del told[identity]
        text = f"volume {name}: its checkpoints are written again"
        context.events.add("info", text, volume=name)
    else:
        told[identity] = trouble
        context.events.add("warning", f"volume {name}: {trouble}", volume=name)
