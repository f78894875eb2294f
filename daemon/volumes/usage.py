"""What snapshots hold, as the engine has measured it.

How it works      One question to the engine for each volume, which remembers what it found of frozen maps.
                  Volumes that are not served are left out.
"""

import contextlib
import time
from collections.abc import Iterable

from polyvol.daemon.context import Context
from polyvol.daemon.types.usage import SnapshotUseView, VolumeUseView
from polyvol.mapping.records.volumes import Volume

PATIENCE_S = 1.0


def snapshot_uses(context: Context, volumes: Iterable[Volume]) -> dict[tuple[int, int], SnapshotUseView]:
    """What snapshots of these volumes hold, by volume id and epoch."""
    found: dict[tuple[int, int], SnapshotUseView] = {}
    kept = context.catalog.clones.by_snapshot()
    for volume in volumes:
        if not context.is_served(volume):
            continue
        with contextlib.suppress(context.engine_error):  # it may be closed in the meantime
            for each in context.engine.snapshot_use(volume.id)["snapshots"]:
                only_log, only_base = each["only_log_bytes"], each["only_base_bytes"]
                if (volume.id, each["epoch"]) in kept:
                    only_log = only_base = 0  # its clones see it as well
                found[volume.id, each["epoch"]] = SnapshotUseView(
                    used=each["log_bytes"],
                    shared=each["log_bytes"] - only_log,
                    frees=only_log + only_base,
                    frees_log=only_log,
                )
    return found


def volume_use(context: Context, volume: Volume) -> VolumeUseView | None:
    """What a volume holds in its change logs, counted now and noted in `uses`; None while it is not served.
    Waits for its processors."""
    if not context.is_served(volume):
        return None
    with contextlib.suppress(context.engine_error):
        began_s = time.monotonic()
        live = context.engine.snapshot_use(volume.id)["live_log_bytes"]
        home, pinned = context.engine.homeward(volume.id) if live else (0, 0)
        home = min(home, live)  # hosts may have written in between
        pinned = min(pinned, live - home)
        used = max(context.engine.space(volume.id)["used_bytes"], live)
        use = VolumeUseView(
            used=used,
            live=live,
            snapshots_only=used - live,
            comes_back=home,
            snapshots_keep=live - home - pinned,
            clones_keep=pinned,
        )
        context.uses[volume.id], context.use_seconds[volume.id] = use, time.monotonic() - began_s
        return use
    return None


def shown_use(context: Context, volume: Volume) -> VolumeUseView | None:
    """As `volume_use`, for somebody who waits: if the last count took longer than PATIENCE_S, what that has
    found; it is counted again in the background."""
    last = context.uses.get(volume.id) if context.is_served(volume) else None
    if last is not None and context.use_seconds.get(volume.id, 0.0) > PATIENCE_S:
        return last
    return volume_use(context, volume)
