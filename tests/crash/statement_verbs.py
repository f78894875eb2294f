"""statement_verbs: a state with some of everything, every verb on it, and what can be seen of it.

How it works      `build` makes the state on files below a root; state_images.py keeps it. `VERBS` has each
                  verb as a function of a service that runs on it. `look` returns all that a user can see, and
                  the contents of the files, without what differs each time, such as UUIDs. Two results for
                  the same state are equal.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyvol.daemon.service import Service
from polyvol.daemon.types.devices import DeviceAdd, DeviceRetry
from polyvol.daemon.types.groups import GroupChange, GroupCreate, GroupSnapshotCreate, RollbackStart
from polyvol.daemon.types.hooks import HookSettings
from polyvol.daemon.types.log_areas import LogAdd
from polyvol.daemon.types.renames import Rename
from polyvol.daemon.types.restores import RestoreBegin, RestoreCompletion
from polyvol.daemon.types.schedules import ScheduleAdd, ScheduleSet
from polyvol.daemon.types.scrubs import ScrubSet
from polyvol.daemon.types.snapshots import HoldChange, SnapshotCreate
from polyvol.daemon.types.volumes import CloneCreate, VolumeCreate, VolumeGrow, VolumeSet
from polyvol.mapping.device import inspect
from polyvol.snapshot.retention import Keep

BLOCK, MIB = 4096, 1 << 20
SIZE = MIB + 3 * BLOCK
UUIDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(8)]
HOOKS = HookSettings(quiesce="/bin/true", thaw="/bin/true")
WAIT_S = 30.0

Verb = Callable[[Service, Path], object]


def build(service: Service, root: Path) -> None:
    """Make the state, with a service on an empty directory below the root."""
    disks = root / "disks"
    for name, size in (("a", 12), ("b", 8), ("log", 600), ("spare", 4)):
        service.add_device(DeviceAdd(path=str(disks / f"{name}.img"), name=name, size=size * MIB))
    for name in ("base", "adoptable", "adopted"):
        (disks / f"{name}.img").write_bytes(name.encode() * (MIB // len(name) // BLOCK) * BLOCK)
        os.truncate(disks / f"{name}.img", MIB)
    (disks / "empty.img").touch()
    os.truncate(disks / "empty.img", 4 * MIB)
    for name in ("base", "adopted"):
        service.add_device(DeviceAdd(path=str(disks / f"{name}.img"), name=name, adopt=True))
    for name in ("v", "x", "p", "k"):
        service.create_volume(_volume(name))
    for name in ("w", "y"):
        service.create_volume(VolumeCreate(name=name, size=SIZE, partition_size=MIB, processors=2))
    service.groups.create(GroupCreate(name="g", volumes=("v", "w")))
    service.groups.create(GroupCreate(name="h"))
    for turn, name in enumerate(("v", "w", "x", "p", "k", "y")):
        write(service, name, turn)
    service.groups.take("g", GroupSnapshotCreate(name="whole"))
    for name in ("s1", "s2", "s3", "held"):
        service.create_snapshots(SnapshotCreate(volumes=("v",), name=name))
        write(service, "v", 9)
    service.groups.hold("v", "held", HoldChange(tag="t"))
    for name, clone in (("p", "pc"), ("k", "kc")):
        service.create_snapshots(SnapshotCreate(volumes=(name,), name="s"))
        service.clone_volume(name, "s", CloneCreate(name=clone, log_devices=("log",)))
    service.delete_volume("k")
    service.create_volume(_volume("k"))  # what was kept has its name no more
    keep = Keep(last=2)
    service.schedules.add(ScheduleAdd(target="v", keep=keep, every_s=3600, name="hourly", hooks=HOOKS))
    service.schedules.add(ScheduleAdd(target="@g", keep=keep, every_s=3600, name="paused"))
    service.schedules.change("paused", ScheduleSet(paused=True))
    _run_schedule(service, "hourly")
    service.create_snapshots(SnapshotCreate(volumes=("x",), name="base"))
    for number, (name, base) in enumerate((("full", None), ("x", "base"))):
        service.restores.begin(_restore(service, name, number, base))
        service.restores.begin(_restore(service, name, number, base, resume=True))


def _volume(name: str) -> VolumeCreate:
    return VolumeCreate(
        name=name, size=SIZE, partition_size=MIB, processors=2, devices=("a", "b"), log_devices=("log",)
    )


def _restore(
    service: Service, name: str, number: int, base: str | None, *, resume: bool = False
) -> RestoreBegin:
    found = [each.uuid for each in service.snapshots.list_all() if (each.volume, each.name) == (name, base)]
    return RestoreBegin(
        volume=name,
        source=f"{name}.backup",
        stream=UUIDS[number],
        size=SIZE,
        partition_size=MIB,
        snapshot="restored",
        snapshot_uuid=UUIDS[number + 4],
        base=base,
        base_uuid=found[0] if found else None,
        log_devices=() if base else ("log",),
        devices=() if base else ("a", "b"),
        resume=resume,
    )


def write(service: Service, export: str, turn: int) -> None:
    """Write a few blocks, and flush."""
    handle = service.engine.open(export)
    try:
        for block in range(0, SIZE // BLOCK, 37):
            handle.pwrite(bytes([turn + 1, block % 251]) * (BLOCK // 2), block * BLOCK)
        handle.flush()
    finally:
        handle.close()


# The verbs


def _disk(root: Path, name: str) -> str:
    return str(root / "disks" / f"{name}.img")


def _complete(service: Service, volume: str, number: int, base: str | None) -> object:
    export = service.restores.begin(_restore(service, volume, number, base, resume=True)).export
    assert export is not None
    write(service, export, 30)
    return service.restores.complete(volume, RestoreCompletion(export=export))


def _delete_many(service: Service) -> object:
    view = service.delete_snapshots("v", ["s*"])
    wait(lambda: service.deletions.show("v").left == 0)
    return view


def _run_schedule(service: Service, name: str) -> object:
    schedule = service._context.catalog.schedules.find(name)
    assert schedule is not None
    service._taker.take_of_schedule(schedule)
    service._context.catalog.schedules.set_ran(schedule.id, schedule.last_ns + 1)
    service._schedules._retain(schedule)
    return schedule


def _scrub(service: Service) -> object:
    service.scrubs.begin("v", 1 << 40)
    wait(lambda: service.scrubs.show("v").state != "running")
    return service.set_scrubs(ScrubSet(weekly=False))


def wait(done: Callable[[], bool]) -> None:
    """Wait for this, for a bounded time."""
    until = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > until:
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.002)


def _keep_1() -> Keep:
    return Keep(last=1)


VERBS: dict[str, Verb] = {
    "device add, a new file": lambda s, r: s.add_device(
        DeviceAdd(path=_disk(r, "n"), name="n", size=4 * MIB)
    ),
    "device add, preallocated": lambda s, r: s.add_device(
        DeviceAdd(path=_disk(r, "n"), name="n", size=4 * MIB, preallocate=True)
    ),
    "device add, a file": lambda s, r: s.add_device(DeviceAdd(path=_disk(r, "empty"), name="n")),
    "device add, adopted": lambda s, r: s.add_device(
        DeviceAdd(path=_disk(r, "adoptable"), name="n", adopt=True)
    ),
    "device remove": lambda s, _: s.remove_device("spare"),
    "device remove, adopted": lambda s, _: s.remove_device("adopted"),
    "device rename": lambda s, _: s.renames.device("b", Rename(name="n")),
    "device retry": lambda s, r: s.retry_device("b", DeviceRetry(path=_disk(r, "b-moved"))),
    "volume create": lambda s, _: s.create_volume(_volume("n")),
    "volume create, files": lambda s, _: s.create_volume(
        VolumeCreate(name="n", size=SIZE, partition_size=MIB, processors=2)
    ),
    "volume create, adopted": lambda s, _: s.create_volume(
        VolumeCreate(name="n", base="base", partition_size=MIB, log_devices=("log",))
    ),
    "volume grow": lambda s, _: s.volumes.grow("w", VolumeGrow(size=2 * MIB + BLOCK)),
    "volume grow, devices": lambda s, _: s.volumes.grow(
        "v", VolumeGrow(size=2 * MIB + BLOCK, devices=("a",))
    ),
    "volume set": lambda s, _: s.volumes.change("v", VolumeSet(when_full="keep-snapshots")),
    "volume set, log rules": lambda s, _: s.volumes.change("w", VolumeSet(log_devices=("0=log", "any"))),
    "volume set, hooks": lambda s, _: s.volumes.change("p", VolumeSet(hooks=HOOKS)),
    "volume add-log": lambda s, _: s.volumes.add_log("w", LogAdd(size=4 * MIB)),
    "volume add-log, device": lambda s, _: s.volumes.add_log("w", LogAdd(devices=("log",), size=8 * MIB)),
    "volume delete": lambda s, _: s.delete_volume("k"),
    "volume delete, files": lambda s, _: s.delete_volume("y"),
    "volume delete, kept": lambda s, _: s.delete_volume("p"),
    "volume delete, the last clone": lambda s, _: s.delete_volume("kc"),
    "volume rename": lambda s, _: s.renames.volume("v", Rename(name="n")),
    "volume rename, a clone's source": lambda s, _: s.renames.volume("p", Rename(name="n")),
    "volume clone": lambda s, _: s.clone_volume("v", "s1", CloneCreate(name="n")),
    "snapshot create": lambda s, _: s.create_snapshots(SnapshotCreate(volumes=("p", "y"), name="n")),
    "snapshot create, log": lambda s, _: s.create_snapshots(
        SnapshotCreate(volumes=("w",), name="n", log_device="log")
    ),
    "snapshot delete": lambda s, _: s.delete_snapshot("v", "s1"),
    "snapshot delete, kept": lambda s, _: s.delete_snapshot("p", "s"),
    "snapshot delete, many": lambda s, _: _delete_many(s),
    "snapshot rename": lambda s, _: s.renames.snapshot("v", "s1", Rename(name="n")),
    "snapshot hold": lambda s, _: s.groups.hold("v", "s1", HoldChange(tag="u")),
    "snapshot release": lambda s, _: s.groups.hold("v", "held", HoldChange(tag="t", release=True)),
    "snapshot rollback": lambda s, _: s.rollbacks.roll_back("v", "s1", RollbackStart(safety=False)),
    "snapshot rollback, a clone's source": lambda s, _: s.rollbacks.roll_back(
        "p", "s", RollbackStart(safety_name="n")
    ),
    "snapshot rollback, safety": lambda s, _: s.rollbacks.roll_back(
        "v", "s1", RollbackStart(safety_name="n")
    ),
    "group create": lambda s, _: s.groups.create(GroupCreate(name="n", volumes=("v", "y"))),
    "group join, leave": lambda s, _: s.groups.change("g", GroupChange(join=("y",), leave=("w",))),
    "group rename": lambda s, _: s.renames.group("g", Rename(name="n")),
    "group snapshot rename": lambda s, _: s.renames.group_snapshot("g", "whole", Rename(name="n")),
    "group delete": lambda s, _: s.groups.delete("h"),
    "group snapshot": lambda s, _: s.groups.take("g", GroupSnapshotCreate(name="n")),
    "group snapshot delete": lambda s, _: s.groups.delete_snapshot("g", "whole"),
    "group rollback": lambda s, _: s.rollbacks.roll_back_group("g", "whole", RollbackStart(safety_name="n")),
    "group hold": lambda s, _: s.groups.hold_snapshot("g", "whole", HoldChange(tag="u")),
    "schedule add": lambda s, _: s.schedules.add(
        ScheduleAdd(target="v", keep=_keep_1(), every_s=3600, name="n", hooks=HOOKS)
    ),
    "schedule pause": lambda s, _: s.schedules.change("hourly", ScheduleSet(paused=True)),
    "schedule resume": lambda s, _: s.schedules.change("paused", ScheduleSet(paused=False)),
    "schedule remove": lambda s, _: s.schedules.remove("hourly"),
    "schedule rename": lambda s, _: s.renames.schedule("hourly", Rename(name="n")),
    "schedule run": lambda s, _: _run_schedule(s, "hourly"),
    "schedule run, group": lambda s, _: _run_schedule(s, "paused"),
    "restore begin": lambda s, _: s.restores.begin(_restore(s, "n", 2, None)),
    "restore begin, incremental": lambda s, _: s.restores.begin(_restore(s, "p", 3, "s")),
    "restore complete": lambda s, _: _complete(s, "full", 0, None),
    "restore complete, incremental": lambda s, _: _complete(s, "x", 1, "base"),
    "restore abandon": lambda s, _: s.restores.abandon("full"),
    "restore abandon, incremental": lambda s, _: s.restores.abandon("x"),
    "scrub": lambda s, _: _scrub(s),
    "reload": lambda s, _: s.reload(4),
}


def _but(kept: str) -> Verb:
    return lambda s, _: [s.delete_snapshot("v", name) for name in {"s1", "s2", "s3"} - {kept}]


BETWEEN: dict[str, list[Verb]] = {
    # A log area that was made for a snapshot is the volume's, and is used by the next try.
    "snapshot create, log": [
        lambda s, _: s._snapshots._log_areas.rules_of_snapshot([s._context.find_volume("w")], ["log"])
    ],
    # Those that stay are named in the answer.
    "snapshot delete, many": [_but("s1"), _but("s2"), _but("s3")],
}
"""What may be left of a verb that was not done to its end, as what else leaves it."""


# What can be seen


def look(service: Service, root: Path) -> dict[str, Any]:
    """All that can be seen of a running service."""
    catalog = service._context.catalog
    names = {volume.id: volume.name for volume in catalog.volumes.all()}
    devices = {device.id: device.name for device in catalog.devices.all()}
    return {
        "exports": {_stable(each["name"]): _digest(service, each["name"]) for each in service.exports()},
        "volumes": sorted(
            (each.name, each.state, each.size, each.when_full, str(each.hooks), len(each.logs))
            for each in service.volumes.list_all(kept=True)
        ),
        "restores": sorted((names[each.volume], each.snapshot, each.base) for each in catalog.restores.all()),
        "snapshots": sorted(
            (
                _stable(each.export),
                each.size,
                tuple(each.holds),
                _stable(each.whole or ""),
                tuple(each.clones),
            )
            for each in service.snapshots.list_all()
        ),
        "groups": sorted(
            (each.name, sorted(each.volumes), [_stable(name) for name in each.snapshots])
            for each in service.groups.list_all()
        ),
        "schedules": sorted(
            (each.name, each.paused, each.error, each.count) for each in service.schedules.list_all()
        ),
        "devices": sorted(
            (each.name, Path(each.path).name, each.role, each.state, tuple(sorted(each.volumes)))
            for each in service.devices.list_all()
        ),
        "used": sorted((devices[each], used) for each, used in catalog.devices.used_bytes().items()),
        "thaws": len(catalog.hooks.thaws_owed()),
        "files": sorted(_files(root, {str(device.uuid): device.name for device in catalog.devices.all()})),
        "directories": [
            sorted(path.name for path in (root / "state" / folder).iterdir())
            == sorted(str(volume.uuid) for volume in catalog.volumes.all())
            for folder in ("volumes", "manifests")
        ],
    }


def _stable(name: str) -> str:
    """A name without the time in it."""
    return re.sub(r"\d{8}T\d{6}Z(-\d+)?", "TIME", name)


def _digest(service: Service, export: str) -> str:
    handle = service.engine.open(export)
    try:
        return hashlib.blake2b(handle.pread(handle.size, 0), digest_size=8).hexdigest()
    finally:
        handle.close()


def _files(root: Path, devices: dict[str, str]) -> list[tuple[str, int, str]]:
    """Each file of a device, or that could be one: its name, its size, and whose label it has."""
    found = []
    for path in (*(root / "disks").iterdir(), *(root / "state" / "devices").iterdir()):
        what = inspect(path)
        labels = [] if what is None else [what.label, what.aside]
        uuids = [str(getattr(label, "device", label)) for label in labels if label is not None]
        owner = ", ".join(devices.get(uuid, f"nobody ({uuid})") for uuid in uuids)
        found.append((path.name, path.stat().st_size, owner))
    return found
