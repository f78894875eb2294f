"""The catalog: versions, ids that are never used again, all or nothing."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from polyvol.mapping.catalog import database as databases
from polyvol.mapping.catalog.database import LATEST_VERSION, Database
from polyvol.mapping.catalog.log_areas import LOG_NUMBER_MAX
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogConflict, CatalogDamaged, CatalogFailed, CatalogVersion, TooManyLogs
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.partition import Partition
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from tests.support.catalogs import MIB, PLAN, device, snapshot

MIGRATIONS = Path(databases.__file__).parent / "migrations"


def test_a_volume_is_read_back_as_it_was_planned(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    data, log = catalog.devices.all()
    assert (data.name, log.name, data.made_for, data.state) == ("v.data", "v.log", volume.id, "adding")
    assert catalog.volumes.partitions(volume.id) == [
        Partition(0, 0, (Extent(data.id, MIB, MIB),)),
        Partition(1, 1, (Extent(data.id, 2 * MIB, MIB),)),
    ]
    assert catalog.log_areas.of(volume.id) == [LogArea(1, (Extent(log.id, MIB, 64 * MIB),))]
    assert (volume.state, volume.next_epoch, volume.next_log) == ("creating", 1, 2)
    assert catalog.devices.used_bytes() == {data.id: 2 * MIB, log.id: 64 * MIB}
    assert catalog.devices.users() == {data.id: [volume.id], log.id: [volume.id]}
    catalog.volumes.set_state(volume.id, "ready")
    assert {each.state for each in catalog.devices.all()} == {"ready"}


def test_a_volume_that_cannot_be_recorded_leaves_nothing(catalog: Catalog) -> None:
    catalog.devices.add(device("v.log"))
    with pytest.raises(CatalogConflict):
        catalog.volumes.create(PLAN)
    assert catalog.volumes.all() == []
    assert [each.name for each in catalog.devices.all()] == ["v.log"]


def test_ids_are_never_used_again(catalog: Catalog) -> None:
    first = catalog.volumes.create(PLAN)
    before = [each.id for each in catalog.devices.all()]
    catalog.volumes.forget(first.id)
    assert catalog.devices.all() == []
    second = catalog.volumes.create(PLAN)
    assert second.id > first.id
    assert min(each.id for each in catalog.devices.all()) > max(before)


def test_log_numbers_are_never_used_again_and_end(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    extra = catalog.devices.add(device("extra"))
    areas = catalog.log_areas.add(volume, [[Extent(extra.id, MIB, 4 * MIB)]], ())
    catalog.log_areas.forget(volume.id, areas, ())
    again = catalog.log_areas.add(volume, [[Extent(extra.id, at * MIB, 4 * MIB)] for at in (1, 5)], ())
    assert [area.number for area in (*areas, *again)] == [2, 3, 4]
    with catalog._database.transaction() as connection:
        connection.execute("UPDATE volume SET next_log = ?", (LOG_NUMBER_MAX + 1,))
    with pytest.raises(TooManyLogs):
        catalog.log_areas.add(volume, [[Extent(extra.id, MIB, 4 * MIB)]], (LogRule((extra.id,)),))
    assert catalog.log_areas.rules(volume.id) == ()


def test_the_snapshots_of_a_cut_are_recorded_all_or_none(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    catalog.snapshots.commit([snapshot(volume.id, "s1", 4)])
    with pytest.raises(CatalogConflict):
        catalog.snapshots.commit([snapshot(volume.id, "s2", 5), snapshot(volume.id, "s1", 6)])
    assert [each.name for each in catalog.snapshots.of(volume.id)] == ["s1"]


def test_next_epoch_stays_above_every_epoch_that_ever_was(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    record = snapshot(volume.id, "s", 7)
    catalog.snapshots.commit([record])
    assert catalog.snapshots.of(volume.id) == [record]
    catalog.snapshots.forget([record.uuid])
    assert catalog.snapshots.of(volume.id) == []
    assert [each.next_epoch for each in catalog.volumes.all()] == [8]


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    first = Catalog(path)
    volume = first.volumes.create(PLAN)
    first.snapshots.commit([snapshot(volume.id, "s", 1)])
    expected = (first.uuid, first.volumes.all(), first.devices.all(), first.snapshots.all())
    second = Catalog(path)  # while the first is open, as after a kill
    assert (second.uuid, second.volumes.all(), second.devices.all(), second.snapshots.all()) == expected
    first.close()
    second.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_catalog_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
    connection.executescript(
        "INSERT INTO volume (id, uuid, name, size, partition_size, state, when_full, created_ns)"
        f" VALUES (1, '{uuid4()}', 'v', 8192, 4096, 'ready', 'keep-writing', 5);"
        "INSERT INTO snapshot (uuid, cut, volume, name, epoch, instant_ns, stall_ns, durable_ns, origin)"
        f" VALUES ('{uuid4()}', '{uuid4()}', 1, 's', 1, 7, 8, 9, 'hand');"
        "PRAGMA user_version = 1"
    )
    connection.close()
    catalog = Catalog(path)
    [snapshot] = catalog.snapshots.of(VolumeId(1))
    assert (snapshot.size, snapshot.consistency, snapshot.hook_trouble) == (8192, "crash", None)
    assert (catalog.groups.all(), catalog.schedules.all()) == ([], [])
    [volume] = catalog.volumes.all()
    assert volume.log_bound == 0, "an upgrade has no log areas grow, because they cannot be removed"
    catalog.volumes.set_policies(replace(volume, log_limit=None))
    assert [each.log_bound for each in catalog.volumes.all()] == [2 * 8192]
    catalog.close()
    # It has all that a new one has.
    names = "SELECT m.name, p.name, p.type FROM sqlite_master m, pragma_table_info(m.name) p ORDER BY 1, 2"
    fresh = tmp_path / "fresh.db"
    Catalog(fresh).close()
    rows = []
    for each in (path, fresh):
        with closing(sqlite3.connect(each)) as connection:
            rows.append(connection.execute(names).fetchall())
    assert rows[0] == rows[1]


def test_the_devices_of_a_catalog_of_version_2_are_used_through_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
    connection.executescript((MIGRATIONS / "to_2.sql").read_text())
    connection.executescript(
        "INSERT INTO device (id, uuid, name, path, kind, adopted, size, sparse, state, created_ns)"
        f" VALUES (7, '{uuid4()}', 'old', '/old', 'block', 1, 8192, 1, 'ready', 5);"
        "PRAGMA user_version = 2"
    )
    connection.close()
    catalog = Catalog(path)
    new = catalog.devices.add(replace(device("new"), direct=True))
    assert [(each.name, each.direct) for each in catalog.devices.all()] == [("old", False), ("new", True)]
    assert catalog.devices.all()[1] == new
    assert catalog._database.rows("PRAGMA user_version")[0][0] == LATEST_VERSION
    with pytest.raises(CatalogConflict), catalog._database.transaction() as connection:
        connection.execute("UPDATE device SET direct = 2")
    catalog.close()


def test_a_catalog_of_an_unknown_version_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalog(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CatalogVersion) as refused:
        Catalog(path)
    assert "version 99" in str(refused.value)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.db", "c.mark"]


@pytest.mark.parametrize("content", ["foreign", "garbage"])
def test_what_is_no_catalog_is_left_untouched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.db"
    if content == "foreign":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.close()
    else:
        path.write_bytes(b"something else" * 999)
    before = path.read_bytes()
    with pytest.raises(CatalogDamaged):
        Catalog(path)
    assert path.read_bytes() == before


def test_an_older_catalog_is_migrated_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalog(path).close()
    (tmp_path / f"to_{LATEST_VERSION + 1}.sql").write_text("ALTER TABLE volume ADD COLUMN colour TEXT;")
    (tmp_path / f"to_{LATEST_VERSION + 2}.sql").write_text("UPDATE catalog SET created_ns = 42;")
    database = Database(path, latest=LATEST_VERSION + 2, migrations=tmp_path)
    assert database.rows("PRAGMA user_version")[0][0] == LATEST_VERSION + 2
    assert database.rows("SELECT created_ns FROM catalog")[0][0] == 42
    assert database.rows("SELECT colour FROM volume") == []
    database.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalog(path).close()
    step = tmp_path / f"to_{LATEST_VERSION + 1}.sql"
    step.write_text("CREATE TABLE extra (x);\nINSERT INTO nowhere VALUES (1);")
    with pytest.raises(CatalogDamaged):
        Database(path, latest=LATEST_VERSION + 1, migrations=tmp_path)
    catalog = Catalog(path)
    assert catalog._database.rows("SELECT name FROM sqlite_master WHERE name = 'extra'") == []
    catalog.close()


def test_a_catalog_that_cannot_be_written_says_so_and_stays_as_it_was(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    catalog._database._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(CatalogFailed, match="cannot be read or written"):
        catalog.volumes.set_state(volume.id, "ready")
    catalog._database._connection.execute("PRAGMA query_only = OFF")
    assert [each.state for each in catalog.volumes.all()] == ["creating"]


def test_a_run_is_clean_if_it_ended_so_or_the_machine_was_started_anew(catalog: Catalog) -> None:
    settings = catalog.settings
    assert settings.begin_run("boot 1"), "there was none before"
    assert not settings.begin_run("boot 1"), "it was killed"
    settings.end_run()
    assert settings.begin_run("boot 1")
    assert settings.begin_run("boot 2")
    assert not settings.begin_run("boot 2")
