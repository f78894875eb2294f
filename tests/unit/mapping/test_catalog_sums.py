"""A catalog whose rows, schema or structure were changed is refused with a sentence, and left as it is."""

import contextlib
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from polyvol.mapping.catalog import sums
from polyvol.mapping.catalog.database import Database, mark_of
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import (
    CatalogDamaged,
    CatalogOlder,
    PolyvolError,
)
from tests.support.catalogs import killed, refused, used_catalog
from tests.unit.mapping.test_catalog import MIGRATIONS


@pytest.fixture
def used(tmp_path: Path) -> Path:
    return used_catalog(tmp_path)


def all_problems(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(sums.problems(connection))


def execute(path: Path, statement: str) -> None:
    """As a changed bit: past the triggers."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(statement)
        connection.commit()


def test_every_table_has_a_sum_that_every_change_keeps(used: Path) -> None:
    with closing(sqlite3.connect(used)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        summed = {row[0]: row[1] for row in connection.execute("SELECT name, rows FROM table_sum")}
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in summed
        }
        assert set(summed) == tables - {"table_sum"} | {"sqlite_master"}
        assert summed == counts
        empty = [table for table, count in counts.items() if not count]
        assert empty == [], "`use` in tests/support/catalogs.py has to leave a row in each table"
        sums.keep(connection)
        triggers = {row[0] for row in connection.execute("SELECT name FROM sqlite_temp_master")}
        own = {table for table in tables if not table.startswith("sqlite_")} - {"table_sum"}
        events = ("INSERT", "UPDATE", "DELETE")
        assert triggers == {f"{table} {event}" for table in own for event in events}
    assert all_problems(used) == []


def test_deleting_everything_keeps_the_sums(used: Path) -> None:
    catalog = Catalog(used)
    for schedule in catalog.schedules.all():
        catalog.schedules.forget(schedule.id)
    for each in catalog.groups.snapshots():
        catalog.snapshots.forget_cut(each.cut)
    for volume in reversed(catalog.volumes.all()):
        catalog.clones.keep_volume(volume)
        catalog.volumes.forget(volume.id)
    for group in catalog.groups.all():
        catalog.groups.forget(group.id)
    catalog.close()
    assert all_problems(used) == []


def test_what_is_undone_leaves_the_sums(used: Path) -> None:
    database = Database(used)
    with contextlib.suppress(KeyboardInterrupt), database.transaction() as connection:
        connection.execute("DELETE FROM partition_extent")
        raise KeyboardInterrupt
    with database.transaction() as connection:
        with pytest.raises(sqlite3.IntegrityError):  # the statement alone is undone, after its first row
            connection.execute("INSERT INTO setting VALUES ('n', '1'), ('n', '2')")
        connection.execute("INSERT INTO setting VALUES ('kept', '1')")
    database.close()
    assert all_problems(used) == []


def test_a_catalog_of_an_older_version_gets_its_sums(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
        for step in (2, 3):
            connection.executescript((MIGRATIONS / f"to_{step}.sql").read_text())
        connection.executescript("INSERT INTO setting VALUES ('a', 'b'); PRAGMA user_version = 3")
    before = path.read_bytes()
    Catalog(path).close()
    assert all_problems(path) == []
    newer = path.with_name("newer.db")
    path.rename(newer)
    path.write_bytes(before)
    refused(path, CatalogOlder, "it has 0 commits")


def values(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        query = (
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
        )
        return connection.execute(query).fetchall()


def test_every_changed_value_is_refused(used: Path) -> None:
    whole = used.read_bytes()
    tried = 0
    for table, column in values(used):
        used.write_bytes(whole)
        for change in (f"{column} + 4096", f"{column} || 'x'"):
            with closing(sqlite3.connect(used)) as connection, contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA ignore_check_constraints = ON")
                connection.execute(f"UPDATE {table} SET {column} = {change}")
                connection.commit()
        if used.read_bytes() != whole:
            tried += 1
            refused(used, CatalogDamaged, "catalog.db cannot be used")
    assert tried > 80


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE partition_extent SET offset = offset + 4096 WHERE partition = 1", "table partition_extent"),
        ("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'volume'", "table sqlite_sequence"),
        ("DELETE FROM snapshot_hold WHERE tag = 'a'", "table snapshot_hold"),
        ("DELETE FROM table_sum WHERE name = 'device'", "table device"),
        ("INSERT INTO table_sum VALUES ('other', 0, 0)", "its table other is missing"),
        ("UPDATE sqlite_master SET sql = replace(sql, '4096', '4097') WHERE name = 'volume'", "schema"),
        ("DROP INDEX clone_source", "schema"),
    ],
)
def test_what_was_changed_is_named(used: Path, statement: str, words: str) -> None:
    execute(used, statement)
    refused(used, CatalogDamaged, words)


def test_an_index_that_says_otherwise_is_refused(used: Path) -> None:
    execute(used, "UPDATE sqlite_master SET rootpage ="
            " (SELECT rootpage FROM sqlite_master WHERE name = 'change_log_extent_device')"
            " WHERE name = 'partition_extent_device'")  # fmt: skip
    refused(used, CatalogDamaged, "SQLite finds in it")


@pytest.mark.parametrize("at", [18, 19])
def test_a_header_that_makes_sqlite_only_read_is_refused(used: Path, at: int) -> None:
    data = bytearray(used.read_bytes())
    data[at] ^= 8
    used.write_bytes(data)
    refused(used, CatalogDamaged, "cannot be used")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_served(used: Path, seed: int) -> None:
    path = killed(used) if seed % 2 else used
    rows = dump(path)
    draw = random.Random(seed)
    names = [path, mark_of(path), *([Path(f"{path}-wal")] if seed % 2 else [])]
    outcomes = {"served": 0, "refused": 0}
    directory = path.parent.with_name("damaged")
    for _ in range(40):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(path.parent, directory)
        victim = directory / draw.choice(names).name
        data = bytearray(victim.read_bytes())
        at = draw.choice([number for number, byte in enumerate(data) if byte])
        data[at] ^= 1 << draw.randrange(8)
        victim.write_bytes(data)
        try:
            Catalog(directory / path.name).close()
        except PolyvolError:
            outcomes["refused"] += 1
        else:
            outcomes["served"] += 1
            assert dump(directory / path.name) == rows, f"{victim} {at}"
    assert outcomes["refused"] > 8, outcomes


def dump(path: Path) -> list[str]:
    """All rows; the log is read, and stays as it is."""
    copy = path.with_name("dump")
    copy.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            shutil.copyfile(f"{path}{suffix}", copy / f"{path.name}{suffix}")
    with closing(sqlite3.connect(copy / path.name)) as connection:
        rows = sorted(connection.iterdump())
    shutil.rmtree(copy)
    return rows


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE scrub SET result = '{'", "column result of its table scrub has a text that is not JSON"),
        ("UPDATE scrub SET volume = 2", "table scrub refers to a volume that is not there"),
        ("UPDATE device SET uuid = 'x'", "column uuid of its table device has a text that is not a UUID"),
    ],
)
def test_texts_of_an_older_version_that_cannot_be_are_refused(
    tmp_path: Path, statement: str, words: str
) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
        connection.executescript(
            "INSERT INTO volume (id, uuid, name, size, partition_size, state, when_full, created_ns)"
            f" VALUES (1, '{uuid4()}', 'v', 8192, 4096, 'ready', 'keep-writing', 5);"
            "INSERT INTO scrub VALUES (1, 1, '{}');"
            "INSERT INTO device (id, uuid, name, path, kind, adopted, size, sparse, state, created_ns)"
            f" VALUES (7, '{uuid4()}', 'old', '/old', 'block', 1, 8192, 1, 'ready', 5);"
            f"PRAGMA user_version = 1; {statement}"
        )
    refused(path, CatalogDamaged, words)


def test_a_run_whose_text_cannot_be_read_is_in_doubt(used: Path) -> None:
    catalog = Catalog(used)
    for text in ("{", "[]", "3", "{}"):
        catalog.settings.set("run", text)
        assert not catalog.settings.begin_run("boot"), text
    catalog.close()
