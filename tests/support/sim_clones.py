"""sim_clones: the sim engine's part in clones, and where a block's bytes are."""

import os
from typing import TYPE_CHECKING

from tests.support.sim_checks import BLOCK, check

if TYPE_CHECKING:
    from polyvol.engine import VolumeSpec
    from tests.support.sim_engine import SimEngine


def check_source(engine: "SimEngine", spec: "VolumeSpec") -> None:
    """Refuse a clone whose source is not there."""
    source = spec["source"]
    if source is None:
        return
    check(source["volume"] < spec["id"], "invalid", "it was made from what came after it")
    check(source["volume"] in engine.volumes, "not-found", "its source is not served")
    target = engine.volumes[source["volume"]]
    check(source["epoch"] in target.stored.snapshots, "not-found", "its source has no such snapshot")
    check(target.spec["partition_size"] == spec["partition_size"], "invalid", "another partition size")


def refuse_source(engine: "SimEngine", volume: int, epoch: int | None) -> None:
    """Refuse to take away a volume, or a snapshot, that a clone was made from."""
    for clone in engine.volumes.values():
        source = clone.spec["source"]
        taken = source is not None and source["volume"] == volume and epoch in (None, source["epoch"])
        check(not taken, "busy", f"volume {volume} is the source of another")


def block_of(engine: "SimEngine", volume: int, epoch: int | None, block: int) -> bytes:
    """A block of a volume or of its snapshot: its own, or its source's, or of its extents."""
    target = engine.volumes[volume]
    blocks = target.stored.blocks if epoch is None else target.stored.snapshots[epoch]
    if block in blocks:
        return blocks[block]
    source = target.spec["source"]
    if source is not None:
        return block_of(engine, source["volume"], source["epoch"], block)
    number, within = divmod(block * BLOCK, target.spec["partition_size"])
    if number >= len(target.spec["partitions"]):
        return bytes(BLOCK)
    for extent in target.spec["partitions"][number]["extents"]:
        if within < extent["length"]:
            fd = engine.devices[extent["device"]]
            return os.pread(fd, BLOCK, extent["offset"] + within).ljust(BLOCK, b"\0")
        within -= extent["length"]
    return bytes(BLOCK)
