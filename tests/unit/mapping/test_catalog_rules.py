"""Log rules, and what each processor had at a snapshot, in the catalog; and what older catalogs become."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from polyvol.mapping.catalog import database as databases
from polyvol.mapping.catalog.database import LATEST_VERSION, Database
from polyvol.mapping.catalog.examine import reference_problems
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogConflict, CatalogVersion
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.volumes import CloneSource, Volume
from tests.support.catalogs import MIB, PLAN, device, snapshot

MIGRATIONS = Path(databases.__file__).parent / "migrations"
MANY = (
    LogRule((1, 2), (0, 1)),
    LogRule((2,), (5, 9), others=True),
    LogRule((), processor=0, others=True),
    LogRule((2, 1), processor=1),
    LogRule((1,)),
    LogRule((2,), others=True),
)


@pytest.fixture
def volume(catalog: Catalog) -> Volume:
    """Its log area is on device 2; device 1 has its data."""
    return catalog.volumes.create(PLAN)


def count(catalog: Catalog, table: str) -> int:
    return int(catalog._database.rows(f"SELECT count(*) FROM {table}")[0][0])


def test_rules_are_read_back_in_their_order(catalog: Catalog, volume: Volume) -> None:
    assert catalog.log_areas.rules(volume.id) == ()
    assert catalog.log_areas.add(volume, [], MANY) == []
    assert catalog.log_areas.rules(volume.id) == MANY
    record = replace(snapshot(volume.id, "s", 1), log_rules=MANY[::-1])
    catalog.snapshots.commit([record, snapshot(volume.id, "t", 2)])
    assert [each.log_rules for each in catalog.snapshots.of(volume.id)] == [MANY[::-1], ()]
    assert catalog.snapshots.find(volume.id, "s") == record
    assert catalog.log_areas.rules(volume.id) == MANY
    catalog.log_areas.add(volume, [], MANY[:1])
    assert catalog.log_areas.rules(volume.id) == MANY[:1]
    made = catalog.volumes.create(
        replace(PLAN, name="w", new_devices=(), partitions=(), logs=(), log_rules=MANY[3:])
    )
    assert catalog.log_areas.rules(made.id) == MANY[3:]
    assert catalog.log_areas.rules(volume.id) == MANY[:1]


def test_rules_go_with_their_snapshot_and_with_their_volume(catalog: Catalog, volume: Volume) -> None:
    catalog.log_areas.add(volume, [], MANY[:2])
    record = replace(snapshot(volume.id, "s", 1), log_rules=MANY, shares=((0, 2), (1, 1)))
    catalog.snapshots.commit([record])
    assert count(catalog, "snapshot_processor") == 2
    catalog.snapshots.forget([record.uuid])
    assert (count(catalog, "log_rule"), count(catalog, "log_rule_device")) == (2, 3)
    assert count(catalog, "snapshot_processor") == 0
    catalog.snapshots.commit([replace(snapshot(volume.id, "t", 2), log_rules=MANY)])
    catalog.volumes.forget(volume.id)
    assert (count(catalog, "log_rule"), count(catalog, "log_rule_device")) == (0, 0)


def test_a_snapshot_that_is_kept_for_a_clone_keeps_its_rules(catalog: Catalog, volume: Volume) -> None:
    record = replace(snapshot(volume.id, "s", 1), log_rules=MANY[:1])
    catalog.snapshots.commit([record])
    catalog.volumes.create(
        replace(
            PLAN, name="c", new_devices=(), partitions=(), logs=(), source=CloneSource(volume.id, Epoch(1))
        )
    )
    catalog.snapshots.forget([record.uuid])
    assert [(each.kept, each.log_rules) for each in catalog.snapshots.with_kept(volume.id)] == [
        (True, MANY[:1])
    ]


def test_areas_and_the_rules_that_name_them_are_recorded_together(catalog: Catalog, volume: Volume) -> None:
    extra = catalog.devices.add(device("extra"))
    rules = (LogRule((extra.id,)),)
    extents = [Extent(extra.id, MIB, 4 * MIB)]
    with pytest.raises(CatalogConflict):
        catalog.log_areas.add(volume, [extents], (*rules, LogRule((99,))))
    assert len(catalog.log_areas.of(volume.id)) == 1
    assert catalog.log_areas.rules(volume.id) == ()
    areas = catalog.log_areas.add(volume, [extents], rules)
    assert catalog.log_areas.rules(volume.id) == rules
    catalog.log_areas.forget(volume.id, areas, MANY[:1])
    assert (len(catalog.log_areas.of(volume.id)), catalog.log_areas.rules(volume.id)) == (1, MANY[:1])


def test_what_each_processor_has_is_recorded_with_the_snapshot(catalog: Catalog, volume: Volume) -> None:
    first = replace(snapshot(volume.id, "s", 1), shares=((0, 1), (1, 1)))
    second = replace(snapshot(volume.id, "t", 3), shares=((0, 1), (1, 2), (4, 1)))
    catalog.snapshots.commit([first])
    catalog.snapshots.commit([second])
    with pytest.raises(CatalogConflict):
        catalog.snapshots.commit([replace(first, uuid=uuid4(), name="u", epoch=Epoch(5)), second])
    assert catalog.snapshots.of(volume.id) == [first, second]
    assert count(catalog, "snapshot_processor") == 5


def old_catalog(path: Path, version: int) -> None:
    """A catalog of an older version: volume 1 with default areas on devices 1 and 2, one for snapshot b on 3
    and one more default one on 1; volume 2 with default areas only, and a deleted snapshot of greater id."""
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
    for step in range(2, min(version, 3) + 1):
        connection.executescript((MIGRATIONS / f"to_{step}.sql").read_text())
    connection.executescript(f"PRAGMA user_version = {min(version, 3)}")
    connection.close()
    if version > 3:
        Database(path, latest=version).close()
    rows = [
        f"INSERT INTO volume (id, uuid, name, size, partition_size, state, when_full, next_log, created_ns)"
        f" VALUES ({number}, '{uuid4()}', 'v{number}', 8192, 4096, 'ready', 'keep-writing', 9, 5)"
        for number in (1, 2)
    ]
    rows += [
        "INSERT INTO device (id, uuid, name, path, kind, adopted, size, sparse, state, created_ns)"
        f" VALUES ({number}, '{uuid4()}', 'd{number}', '/d{number}', 'file', 0, 900000000, 1, 'ready', 5)"
        for number in (1, 2, 3)
    ]
    for volume, number, default, on in ((1, 1, 1, 2), (1, 2, 1, 1), (1, 3, 0, 3), (1, 4, 1, 1), (2, 1, 1, 3)):
        rows.append(f"INSERT INTO change_log VALUES ({volume}, {number}, {default})")
        offset = (8 * volume + number) * 4194304
        rows.append(f"INSERT INTO change_log_extent VALUES ({volume}, {number}, 0, {on}, {offset}, 4194304)")
    for identity, volume, name, epoch, log in (
        (1, 1, "a", 1, "NULL"),
        (2, 1, "b", 2, "3"),
        (3, 1, "c", 3, "2"),
        (4, 2, "a", 1, "NULL"),
        (9, 2, "gone", 4, "NULL"),
    ):
        rows.append(
            "INSERT INTO snapshot"
            " (id, uuid, cut, volume, name, epoch, log, instant_ns, stall_ns, durable_ns, origin)"
            f" VALUES ({identity}, '{uuid4()}', '{uuid4()}', {volume}, '{name}', {epoch}, {log},"
            " 7, 8, 9, 'hand')"
        )
        rows.append(f"INSERT INTO snapshot_hold VALUES ({identity}, 'tag{identity}')")
        rows.append(f"INSERT INTO snapshot_stall VALUES ({identity}, 0, 5)")
    rows += ["DELETE FROM snapshot_hold WHERE snapshot = 9", "DELETE FROM snapshot_stall WHERE snapshot = 9"]
    rows.append("DELETE FROM snapshot WHERE id = 9")
    if version > 3:
        database = Database(path, latest=version)
        with database.transaction() as transaction:
            for row in rows:
                transaction.execute(row)
        database.close()
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(";".join(rows))


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_named_and_default_logs_of_an_older_catalog_become_rules(tmp_path: Path, version: int) -> None:
    path = tmp_path / "catalog.db"
    old_catalog(path, version)
    catalog = Catalog(path)
    one, two = catalog.volumes.all()
    # As before: the default areas in turns, then the others.
    assert catalog.log_areas.rules(one.id) == (LogRule((2,)), LogRule((1,), others=True))
    assert catalog.log_areas.rules(two.id) == ()
    assert [(each.name, each.log_rules) for each in catalog.snapshots.of(one.id)] == [
        ("a", ()),
        ("b", (LogRule((3,), others=True),)),
        ("c", (LogRule((1,), others=True),)),
    ]
    assert [(each.name, each.log_rules) for each in catalog.snapshots.of(two.id)] == [("a", ())]
    assert [(area.number, area.device) for area in catalog.log_areas.of(one.id)] == [
        (1, 2),
        (2, 1),
        (3, 3),
        (4, 1),
    ]
    # What refers to snapshots is still there, and ids are not used again.
    assert [each.holds for each in catalog.snapshots.all()] == [("tag1",), ("tag2",), ("tag3",), ("tag4",)]
    assert all(each.stalls == ((0, 5),) for each in catalog.snapshots.all())
    assert all(each.shares == () for each in catalog.snapshots.all()), "nobody knows"
    catalog.snapshots.commit([snapshot(two.id, "new", 10)])
    with catalog._database.transaction() as connection:
        assert list(reference_problems(connection)) == []
        assert connection.execute("SELECT max(id) FROM snapshot").fetchone()[0] == 10
        assert (
            connection.execute("SELECT count(*) FROM temp.sqlite_master WHERE type = 'table'").fetchone()[0]
            == 0
        )
    with pytest.raises(CatalogConflict):
        catalog.snapshots.commit([snapshot(VolumeId(99), "x", 1)])
    catalog.close()
    Catalog(path).close()  # its sums are right


def test_a_catalog_without_snapshots_that_had_some_does_not_use_their_ids_again(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    old_catalog(path, 4)
    database = Database(path, latest=4)
    with database.transaction() as connection:
        connection.execute("DELETE FROM snapshot")
    database.close()
    catalog = Catalog(path)
    catalog.snapshots.commit([snapshot(2, "new", 10)])
    assert catalog._database.rows("SELECT id FROM snapshot")[0][0] == 10
    catalog.close()


def test_an_older_polyvol_refuses_a_catalog_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    Catalog(path).close()
    before = path.read_bytes()
    with pytest.raises(CatalogVersion, match=f"version {LATEST_VERSION}"):
        Database(path, latest=LATEST_VERSION - 1)
    assert path.read_bytes() == before


ROWS: dict[str, Callable[[int], str]] = {
    "two selectors": lambda volume: (
        "INSERT INTO log_rule (volume, ordinal, first_partition, last_partition, processor, others)"
        f" VALUES ({volume}, 0, 0, 1, 0, 0)"
    ),
    "half a range": lambda volume: (
        f"INSERT INTO log_rule (volume, ordinal, first_partition, others) VALUES ({volume}, 0, 0, 0)"
    ),
    "backwards": lambda volume: (
        "INSERT INTO log_rule (volume, ordinal, first_partition, last_partition, others)"
        f" VALUES ({volume}, 0, 2, 1, 0)"
    ),
    "no snapshot": lambda volume: (
        f"INSERT INTO log_rule (volume, epoch, ordinal, others) VALUES ({volume}, 7, 0, 0)"
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_rule_that_cannot_be_is_not_recorded(catalog: Catalog, volume: Volume, what: str) -> None:
    with pytest.raises(CatalogConflict), catalog._database.transaction() as connection:
        connection.execute(ROWS[what](volume.id))
