"""Advice: what to do about log areas that are full, or will be. Advice that would not help is not given.
Pure.

How it works      What happens by itself comes first: log areas grow, relocation gives back. Then comes what
                  costs no snapshot, then snapshots and clones that hold something. That one more log area
                  helps is said if nothing happens by itself and no setting does it.
"""

from dataclasses import dataclass

from polyvol.daemon.types.usage import VolumeUseView
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size

WORTH_SHARE = 20
"""What is less than this part of the log areas is not worth advice."""


@dataclass(frozen=True, slots=True)
class Room:
    """The log areas of a volume have `size` bytes, and `free` bytes are free for more of them, on devices
    that the writes in question may use."""

    size: int
    free: int

    def left(self, volume: Volume) -> int:
        """By how much the volume's log areas can grow by themselves, bytes."""
        return max(0, min(self.free, volume.log_bound - self.size))


def advice(volume: Volume, use: VolumeUseView | None, room: Room) -> str:
    """What to do, as a clause; `use`: None where it was not counted yet."""
    name, parts = volume.name, list[str]()
    worth = max(1, room.size // WORTH_SHARE)
    grows = room.left(volume) > 0
    if grows:
        parts.append(f"they grow by themselves, up to {format_size(volume.log_bound)}")
    settles = grows
    if use is None:
        return ", ".join(parts) or f"`polyvol volume show {name}` says what they hold, and what to do"
    if use.comes_back >= worth:
        settles |= volume.is_relocated
        parts.append(_comes_back(volume, use.comes_back))
    if settles:
        return ", and ".join(parts)
    if room.free > 0 and volume.log_bound <= room.size:
        parts.append(
            f"let them grow, for which {format_size(room.free)} are free: `polyvol volume set {name}"
            f" --log-limit SIZE` with more than {format_size(room.size)}"
        )
    helps = bool(parts)
    parts += _who_holds(volume, use, worth)
    if not helps:
        parts.append(f"add a log area: `polyvol volume add-log {name}`")
    return ", or ".join(parts)


def _comes_back(volume: Volume, size: int) -> str:
    if volume.is_relocated:
        return f"relocation gives {format_size(size)} back by itself"
    return (
        f"turn relocation on, which gives {format_size(size)} back:"
        f" `polyvol volume set {volume.name} --relocate auto`"
    )


def _who_holds(volume: Volume, use: VolumeUseView, worth: int) -> list[str]:
    """Who can be deleted so that space becomes free."""
    parts = []
    if use.snapshots_only >= worth:
        parts.append(f"delete snapshots, which alone hold {format_size(use.snapshots_only)}")
    elif use.snapshots_keep >= worth and volume.source is None:
        then = "relocation gives back then" if volume.is_relocated else "writes go back to then"
        size = format_size(use.snapshots_keep)
        parts.append(f"delete the snapshots that need the base places of {size}, which {then}")
    if use.clones_keep >= worth and volume.is_relocated:
        parts.append(f"delete clones, which pin {format_size(use.clones_keep)}")
    return parts
