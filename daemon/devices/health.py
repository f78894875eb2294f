"""Health: faults of devices, and their effect on volumes and partitions.

How it works      A device is 'missing' (what was found at start, or at its last retry), 'hung' (it does not
                  answer), 'faulty' (a call on it has failed since it was opened, in the engine's words) or
                  'ok'. A partition with an extent on a device that is not ok is faulty. A volume that uses
                  one is degraded; so is one with blocks that do not have their checksum.
Invariants        HE1 nothing here is stored: it is derived each time.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyvol.daemon.context import Context, extent_views
from polyvol.daemon.left_over import left_over_notes
from polyvol.daemon.types.base import WHY_FUTURE, iso
from polyvol.daemon.types.scrubs import BadBlockView
from polyvol.daemon.types.volumes import PartitionView
from polyvol.mapping.device import short_clause
from polyvol.mapping.os_errors import reason_of
from polyvol.mapping.partition import Partition
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import counted

if TYPE_CHECKING:
    from polyvol.engine import DeviceFaultStats

DeviceHealth = Literal["ok", "missing", "faulty", "hung"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a device, by its name: a clause."""

    device: str
    state: DeviceHealth
    reason: str


def device_troubles(context: Context) -> dict[int, Trouble]:
    """The devices that are not ok, by id."""
    names = context.device_names()
    found = {}
    for entry in context.stats()["devices"]:
        device, fault, silent_s = entry["device"], entry["fault"], entry["silent_s"]
        if device not in names:
            continue
        if silent_s is not None:
            found[device] = Trouble(names[device], "hung", silence_clause(silent_s, context.io_timeout_s))
        elif fault is not None:
            found[device] = Trouble(names[device], "faulty", fault_clause(fault))
    for device, reason in dict(context.device_trouble).items():
        if device in names:
            found[device] = Trouble(names[device], "missing", reason)
    return found


def unusable_devices(context: Context) -> dict[int, str]:
    """The devices that must not be placed on or cleared, with the reason as a clause: those that are missing,
    do not answer, have become shorter, or are partly added or removed."""
    entries = context.stats()["devices"]
    faults = {entry["device"]: entry["fault"] for entry in entries}
    hung = {
        entry["device"]: silence_clause(entry["silent_s"], context.io_timeout_s)
        for entry in entries
        if entry["silent_s"] is not None
    }
    short = {
        device: short_clause(*fault["short"])
        for device, fault in faults.items()
        if fault is not None and fault["short"] is not None
    }
    unfinished = {device.id: why for device in context.catalog.devices.all() if (why := device.unfinished)}
    return short | hung | context.device_trouble | unfinished


def silence_clause(silent_s: float, timeout_s: int) -> str:
    """The clause about a device that has not answered for so long."""
    ends = f"requests end with EIO after {timeout_s} s" if timeout_s else "requests wait for it"
    return f"it has not answered for {silent_s:.0f} s; {ends}"


def fault_clause(fault: "DeviceFaultStats") -> str:
    """Why a device is faulty, as a clause."""
    if fault["short"] is not None:
        return short_clause(*fault["short"])
    where = "" if fault["call"] == "syncing" else f" at {fault['offset']}"
    often = "once" if fault["times"] == 1 else f"{fault['times']} times"
    how = reason_of(fault["errno"])
    clause = f"{fault['call']}{where} failed: {how} ({often} since {iso(fault['first_ns'])}"
    if fault["times"] > 1:
        clause += f", last {iso(fault['last_ns'])}"
    clause += ")"
    if fault["call"] == "syncing":
        clause += "; what was written to it and not flushed may be lost"
    return clause


def partition_trouble(partition: Partition, troubles: Mapping[int, Trouble]) -> str | None:
    """Why a partition is faulty, as a clause, or None."""
    for extent in partition.extents:
        trouble = troubles.get(extent.device)
        if trouble is not None:
            return f"device {trouble.device} is {trouble.state}: {trouble.reason}"
    return None


def partition_views(context: Context, volume: Volume, names: dict[int, str]) -> list[PartitionView]:
    """Each partition of a volume; `names`: of devices."""
    troubles = device_troubles(context)
    views = []
    for partition in context.catalog.volumes.partitions(volume.id):
        reason = partition_trouble(partition, troubles)
        views.append(
            PartitionView(
                number=partition.number,
                processor=partition.processor,
                extents=extent_views(partition.extents, names),
                state="ok" if reason is None else "faulty",
                reason=reason,
            )
        )
    return views


def volume_trouble(
    devices: Iterable[int], partitions: Iterable[Partition], troubles: Mapping[int, Trouble]
) -> str | None:
    """Why a volume is degraded by its devices, as a clause, or None."""
    found = [troubles[device] for device in devices if device in troubles]
    if not found:
        return None
    count = hit = 0
    for partition in partitions:
        count += 1
        hit += any(extent.device in troubles for extent in partition.extents)
    what = "; ".join(f"device {trouble.device} is {trouble.state}: {trouble.reason}" for trouble in found)
    return f"{what} ({hit} of {count} partitions faulty)" if hit else what


def bad_block_views(context: Context, volume: Volume, names: Mapping[int, str]) -> list[BadBlockView]:
    """The blocks of a volume that are known to be bad; none if the engine does not know the volume."""
    with contextlib.suppress(context.engine_error):  # it may be deleted by now
        return [
            BadBlockView(
                partition=bad["partition"],
                block=bad["block"],
                device=names.get(bad["device"], "?"),
                first=iso(bad["first_ns"]),
                last=iso(bad["last_ns"]),
                times=bad["times"],
            )
            for bad in context.engine.volume_stats(volume.id)["bad_blocks"]["blocks"]
        ]
    return []


def bad_blocks_clause(bad: Sequence[BadBlockView]) -> str:
    """The clause about bad blocks; there is at least one."""
    first = bad[0]
    where = f"partition {first.partition} block {first.block} on device {first.device}, found {first.first}"
    if len(bad) == 1:
        return f"1 block does not match its checksum ({where})"
    return f"{len(bad)} blocks do not match their checksums (the first: {where})"


def notes(context: Context) -> list[str]:
    """Remarks about devices, a sentence each."""
    now = context.clock()
    found = context.catalog.settings.in_future(now)
    said = [] if context.state_trouble is None else [context.state_trouble]
    said += left_over_notes(context)
    if not found:
        return said
    what = ", ".join(counted(number, noun) for noun, number in found.items())
    return [*said, f"the clock says {iso(now)}, and there are later times of {what}, {WHY_FUTURE}"]


def summary(context: Context) -> str:
    """The state of everything in one line, for systemd to show."""
    exports = context.engine.exports()
    volumes = sum(not export["read_only"] and not export["hidden"] for export in exports)
    snapshots = sum(export["read_only"] for export in exports)
    clients = sum(export["connections"] for export in exports)
    words = [counted(volumes, "volume")]
    if context.volume_trouble:
        words.append(f"{len(context.volume_trouble)} not served")
    if context.device_trouble:
        words.append(f"{counted(len(context.device_trouble), 'device')} missing")
    if context.state_trouble is not None:
        words.append("the state directory cannot be written")
    return ", ".join([*words, counted(snapshots, "snapshot"), counted(clients, "client")])
