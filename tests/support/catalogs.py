"""catalogs: a catalog with rows in every table, as a stop or a kill leaves it, and changes of one."""

import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from polyvol.mapping.catalog import sums
from polyvol.mapping.catalog.schedules import new_schedule
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogConflict, PolyvolError
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.partition import Partition
from polyvol.mapping.plans.inventory import NewDevice
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.groups import GroupSnapshot
from polyvol.mapping.records.hooks import Hooks
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.rollbacks import Rollback
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import CloneSource

MIB = 1 << 20
PLAN = VolumePlan(
    "v",
    2 * MIB,
    MIB,
    (Partition(0, 0, (Extent(-1, MIB, MIB),)), Partition(1, 1, (Extent(-1, 2 * MIB, MIB),))),
    (LogArea(1, (Extent(-2, MIB, 64 * MIB),)),),
    (NewDevice(-1, "v.data", "devices/v.data", 3 * MIB), NewDevice(-2, "v.log", "devices/v.log", 65 * MIB)),
)


def snapshot(volume: int, name: str, epoch: int) -> SnapshotRecord:
    """A snapshot to commit."""
    return SnapshotRecord(uuid4(), uuid4(), VolumeId(volume), name, Epoch(epoch), 1, 2, 3, ((0, 2), (1, 1)))


def device(name: str) -> Device:
    """A device to add."""
    return Device(0, uuid4(), name, "/x", "file", False, 8 * MIB, True, None, "ready", 5)


def use(catalog: Catalog) -> None:
    """Have rows in every table, by verbs, some of them changed and taken out again."""
    volume = catalog.volumes.create(PLAN)
    catalog.volumes.set_state(volume.id, "ready")
    catalog.devices.add(device("spare"))
    catalog.devices.forget(catalog.devices.add(device("gone")).id)
    area = catalog.log_areas.of(volume.id)[0]
    rules = (LogRule((area.device,), (0, 1)), LogRule((), processor=1, others=True), LogRule((area.device,)))
    catalog.log_areas.add(volume, [], rules)
    held = replace(
        snapshot(volume.id, "s", 1), holds=("a", "b"), copy_of=uuid4(), log_rules=rules, shares=((0, 1),)
    )
    catalog.groups.create("g", [volume.id])
    group = catalog.groups.all()[0]
    catalog.groups.change(group, [volume.id], [])
    catalog.snapshots.commit([held], GroupSnapshot(held.cut, group.id, "gs"))
    rollback = {volume.id: Rollback(Epoch(2), Epoch(1), volume.size, volume.size)}
    catalog.snapshots.commit([snapshot(volume.id, "t", 2)], None, rollback)
    catalog.snapshots.hold([held.uuid], "a")
    catalog.snapshots.drop([catalog.snapshots.of(volume.id)[1]])
    clone = replace(PLAN, name="c", new_devices=(), partitions=(), logs=())
    made = catalog.volumes.create(replace(clone, source=CloneSource(volume.id, Epoch(1))))
    catalog.restores.begin(RestoreRecord(made.id, uuid4(), "-", "s", uuid4(), None, 7))
    schedule = new_schedule(
        "x", volume=volume.id, group=None, every_s=9, cron=None, keep={"last": 2}, prefix="p"
    )
    catalog.schedules.add(schedule, Hooks("q", "\u00e9\U0001f600", 5, False))
    catalog.hooks.owe_thaw({"a": 1})
    for value in ("1", "2"):
        catalog.settings.set("one", value)
    for ended in (1, 2):
        catalog.scrubs.keep(volume.id, ended, "{}")
    with pytest.raises(CatalogConflict):
        catalog.volumes.create(replace(PLAN, new_devices=()))


def used_catalog(directory: Path) -> Path:
    """The catalog of a state directory that was used and stopped."""
    path = directory / "state" / "catalog.db"
    path.parent.mkdir()
    catalog = Catalog(path)
    use(catalog)
    catalog.close()
    return path


def killed(path: Path) -> Path:
    """The same state directory as a kill would have left it, with a log."""
    catalog = Catalog(path)
    catalog.settings.set("more", "1")
    left = path.parent.with_name("killed")
    shutil.copytree(path.parent, left)
    catalog.close()
    return left / path.name


def contents(directory: Path) -> dict[str, bytes]:
    """The files of a directory; SQLite may write its -shm."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


def refused(path: Path, error: type[PolyvolError], words: str) -> None:
    """Opening it is refused, and changes nothing."""
    before = contents(path.parent)
    with pytest.raises(error, match=re.escape(words)):
        Catalog(path)
    assert contents(path.parent) == before


def change(path: Path, statement: str) -> None:
    """Run a statement on a catalog; its sums follow."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        sums.keep(connection)
        connection.execute("BEGIN")
        connection.execute(statement)
        sums.renew_sequence(connection)
        connection.execute("COMMIT")
