"""What snapshots hold, as the engine has measured it.

How it works      One question to the engine for each volume, which remembers what it found of frozen maps.
                  Volumes that are not served are left out.
"""

import contextlib
from collections.abc import Iterable

from polyvol.daemon.context import Context
from polyvol.daemon.types.usage import SnapshotUseView, VolumeUseView
from polyvol.mapping.records.volumes import Volume


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
        found = context.engine.snapshot_use(volume.id)
        live, home, pinned = found["live_log_bytes"], found["home_bytes"], found["pinned_bytes"]
        used = max(context.engine.space(volume.id)["used_bytes"], live)
        use = VolumeUseView(
            used=used,
            live=live,
            snapshots_only=used - live,
            comes_back=home,
            snapshots_keep=live - home - pinned,
            clones_keep=pinned,
        )
        context.uses[volume.id] = use
        return use
    return None
