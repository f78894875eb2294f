"""A damaged, older or missing catalog is refused with a sentence, and left as it is."""

import contextlib
import random
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import crcmod.predefined
import pytest

from polyvol.mapping.catalog import sums
from polyvol.mapping.catalog.database import Database, mark_of
from polyvol.mapping.catalog.mark import Mark, Marked
from polyvol.mapping.catalog.schedules import new_schedule
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.device import Device
from polyvol.mapping.errors import (
    CatalogDamaged,
    CatalogMissing,
    CatalogOlder,
    CatalogUnmarked,
    PolyvolError,
)
from polyvol.mapping.group import GroupSnapshot, Hooks
from polyvol.mapping.records import CloneSource, Rollback
from tests.unit.mapping.test_catalog import MIGRATIONS, MIB, PLAN, device, snapshot

ROOT = Path(__file__).resolve().parents[3]


def use(catalog: Catalog) -> None:
    """Have rows in every table, by verbs, some of them changed and taken out again."""
    volume = catalog.create_volume(PLAN)
    catalog.set_volume_state(volume.id, "ready")
    catalog.add_device(device("spare"))
    catalog.forget_device(catalog.add_device(device("gone")).id)
    held = replace(snapshot(volume.id, "s", 1), holds=("a", "b"), copy_of=uuid4())
    catalog.groups.create("g", [volume.id])
    group = catalog.groups.all()[0]
    catalog.groups.join(group.id, [volume.id])
    catalog.commit_snapshots([held], GroupSnapshot(held.cut, group.id, "gs"))
    rollback = {volume.id: Rollback(2, 1, volume.size, volume.size)}
    catalog.commit_snapshots([snapshot(volume.id, "t", 2)], None, rollback)
    catalog.groups.hold([held.uuid], "a")
    catalog.removal.drop_snapshots([catalog.snapshots(volume.id)[1]])
    clone = replace(PLAN, name="c", new_devices=(), partitions=(), logs=())
    catalog.create_volume(replace(clone, source=CloneSource(volume.id, 1)))
    schedule = new_schedule(
        "x", volume=volume.id, group=None, every_s=9, cron=None, keep={"last": 2}, prefix="p"
    )
    catalog.schedules.add(schedule, Hooks("q", "\u00e9\U0001f600", 5, False))
    catalog.schedules.owe_thaw({"a": 1})
    for value in ("1", "2"):
        catalog.settings.set("one", value)
    for ended in (1, 2):
        catalog.settings.keep_scrub(volume.id, ended, "{}")
    with pytest.raises(sqlite3.IntegrityError):
        catalog.create_volume(replace(PLAN, new_devices=()))


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The catalog of a state directory that was used and stopped."""
    path = tmp_path / "state" / "catalog.db"
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
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


def refused(path: Path, error: type[PolyvolError], words: str) -> None:
    """Opening it is refused, and changes nothing."""
    before = contents(path.parent)
    with pytest.raises(error, match=re.escape(words)):
        Catalog(path)
    assert contents(path.parent) == before


def all_problems(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(sums.problems(connection))


def execute(path: Path, statement: str) -> None:
    """As a changed bit: past the triggers."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(statement)
        connection.commit()


# Sums


def test_every_table_has_a_sum_that_every_change_keeps(used: Path) -> None:
    with closing(sqlite3.connect(used)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        summed = {row[0]: row[1] for row in connection.execute("SELECT name, rows FROM table_sum")}
        counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in summed}
        assert set(summed) == tables - {"table_sum"} | {"sqlite_master"}
        assert summed == counts
        assert all(counts.values()), "the verbs left no row in some table"
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
        catalog.removal.forget_cut(each.cut)
    for volume in reversed(catalog.volumes()):
        catalog.removal.keep_volume(volume)
        catalog.forget_volume(volume.id)
    for group in catalog.groups.all():
        catalog.groups.forget(group.id)
    catalog.close()
    assert all_problems(used) == []


def test_what_is_undone_leaves_the_sums(used: Path) -> None:
    database = Database(used)
    with pytest.raises(KeyboardInterrupt), database.transaction() as connection:
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


@pytest.mark.parametrize("seed", range(2))
def test_no_flipped_bit_is_served(used: Path, seed: int) -> None:
    path = killed(used) if seed % 2 else used
    rows = dump(path)
    draw = random.Random(seed)
    names = [path, mark_of(path), *([Path(f"{path}-wal")] if seed % 2 else [])]
    outcomes = {"served": 0, "refused": 0}
    directory = path.parent.with_name("damaged")
    for _ in range(60):
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
    assert outcomes["refused"] > 20, outcomes


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


# The mark


def test_the_mark_has_the_bytes_of_its_page(used: Path) -> None:
    catalog = Catalog(used)
    commits = catalog._database.rows("SELECT commits FROM catalog")[0][0]
    for step in range(3):
        catalog.settings.set("step", str(step))
        data = mark_of(used).read_bytes()
        found = [data[at : at + 44] for at in (0, 512)]
        newest = found[(commits + step + 1) % 2]
        assert struct.unpack_from("<8sII16sQ", newest) == (
            b"PVMARK\0\x01",
            1,
            44,
            catalog.uuid.bytes,
            commits + step + 1,
        )
        crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
        assert struct.unpack_from("<I", newest, 40)[0] == crc32c(newest[:40])
        assert len(data) == 1024
        assert not any(data[44:512]) and not any(data[556:])
    catalog.close()
    page = (ROOT / "docs" / "formats-labels.md").read_text()
    part = page[page.index("### The mark") :]
    assert re.findall(r"^\| (\d+) \| (\d+) \|", part, re.M) == [
        ("0", "8"),
        ("8", "4"),
        ("12", "4"),
        ("16", "16"),
        ("32", "8"),
        ("40", "4"),
    ]
    assert "`50 56 4d 41 52 4b 00 01`" in part


def remove_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def truncate_wal(path: Path) -> None:
    file = Path(f"{path}-wal")
    file.write_bytes(file.read_bytes()[:-2000])


def empty_wal(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"")


def damage_wal(path: Path) -> None:
    file = Path(f"{path}-wal")
    data = bytearray(file.read_bytes())
    data[len(data) - 3000] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [remove_wal, truncate_wal, empty_wal, damage_wal])
def test_a_log_that_is_not_whole_is_noticed(used: Path, damage: Callable[[Path], None]) -> None:
    path = killed(used)
    damage(path)
    refused(path, CatalogOlder, "its -wal file is missing or damaged")


def test_an_older_catalog_is_refused_and_can_be_accepted(used: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copyfile(used, older)
    catalog = Catalog(used)
    catalog.settings.set("later", "1")
    catalog.close()
    shutil.copyfile(older, used)
    refused(used, CatalogOlder, "is an older copy")
    Catalog(used, accept_older=True).close()
    catalog = Catalog(used)
    assert catalog.settings.get("later") is None
    catalog.close()


def test_an_older_catalog_with_a_newer_log_is_refused(used: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copyfile(used, older)
    catalog = Catalog(used)
    catalog.set_device_path(1, "/elsewhere")
    catalog.close()
    path = killed(used)
    shutil.copyfile(older, path)
    refused(path, CatalogDamaged, "table device")


def test_a_log_of_another_time_is_refused(used: Path) -> None:
    path = killed(used)
    log = Path(f"{path}-wal").read_bytes()
    catalog = Catalog(used)
    catalog.set_device_path(1, "/elsewhere")
    catalog.close()
    Path(f"{used}-wal").write_bytes(log)
    with pytest.raises((CatalogOlder, CatalogDamaged)):
        Catalog(used)


def lose_mark(path: Path) -> None:
    mark_of(path).unlink()


def shorten_mark(path: Path) -> None:
    mark_of(path).write_bytes(mark_of(path).read_bytes()[:20])


def damage_mark(path: Path) -> None:
    data = bytearray(mark_of(path).read_bytes())
    data[33] ^= 1
    data[512 + 33] ^= 1
    mark_of(path).write_bytes(data)


def newer_mark(path: Path) -> None:
    fields = struct.pack("<8sII16sQ", b"PVMARK\0\x01", 2, 44, bytes(16), 7)
    crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")(fields)
    mark_of(path).write_bytes((fields + struct.pack("<I", crc)).ljust(512, b"\0") * 2)


def another_mark(path: Path) -> None:
    Mark(mark_of(path)).make(Marked(uuid4(), 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_mark, "is missing"),
        (shorten_mark, "is damaged"),
        (damage_mark, "is damaged"),
        (newer_mark, "has format version 2"),
        (another_mark, "belongs to another catalog"),
    ],
)
def test_a_mark_that_says_nothing_is_told(used: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(used)
    refused(used, CatalogUnmarked, words)
    Catalog(used, accept_older=True).close()
    Catalog(used).close()


def test_one_record_of_the_mark_is_enough(used: Path) -> None:
    catalog = Catalog(used)
    catalog.settings.set("a", "1")
    catalog.settings.set("a", "2")
    catalog.close()
    for at in (0, 512):
        data = bytearray(mark_of(used).read_bytes())
        data[at + 20] ^= 4
        mark_of(used).write_bytes(data)
        catalog = Catalog(used)
        catalog.settings.set("b", "1")
        catalog.settings.set("b", "2")
        catalog.close()
        said = Mark(mark_of(used)).read()
        assert said is not None
        assert all(isinstance(each, Marked) for each in said)


def test_a_mark_of_before_the_last_commit_is_brought_up_to_date(used: Path) -> None:
    before = mark_of(used).read_bytes()
    catalog = Catalog(used)
    for number in range(5):
        catalog.settings.set("a", str(number))
    catalog.close()
    after = mark_of(used).read_bytes()
    mark_of(used).write_bytes(before)  # a power loss can leave this
    Catalog(used).close()
    newest = max(each.commits for each in Mark(mark_of(used)).read() or [] if isinstance(each, Marked))
    assert struct.pack("<Q", newest) in after


def test_a_mark_that_cannot_be_written_is_written_before_the_next_commit(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(used)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(catalog._database._mark, "write", fail)
        catalog.settings.set("a", "1")  # it is committed, and so it succeeds
        with pytest.raises(PolyvolError, match="Input/output error"):
            catalog.settings.set("a", "2")
    assert catalog.settings.get("a") == "1"
    catalog.settings.set("a", "3")
    catalog.close()
    Catalog(used).close()


# No catalog


@pytest.mark.parametrize("trace", ["catalog.mark", "catalog.db-wal", "volumes/u", "devices/v.data"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_catalog_that_is_gone_is_refused(tmp_path: Path, trace: str, how: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_bytes(b"x")
    path = tmp_path / "catalog.db"
    if how == "empty":
        path.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CatalogMissing, match=f"is {how}, but {tmp_path / trace} shows"):
        Catalog(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", ["nothing", "empty", "no tables"])
def test_a_new_state_directory_gets_a_catalog(tmp_path: Path, left: str) -> None:
    path = tmp_path / "catalog.db"
    for name in ("volumes", "devices"):
        (tmp_path / name).mkdir()
    if left == "empty":
        path.touch()
    if left == "no tables":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    Catalog(path).close()
    assert sorted(each.name for each in tmp_path.glob("catalog*")) == ["catalog.db", "catalog.mark"]
    Catalog(path).close()


def test_a_catalog_without_tables_that_was_used_is_refused(used: Path) -> None:
    used.unlink()
    with closing(sqlite3.connect(used)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    refused(used, CatalogMissing, "is empty")


# Catalogs without sums


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE scrub SET result = '{'", "column result of its table scrub has a text that is not JSON"),
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


def test_a_device_is_read_as_it_was(used: Path) -> None:
    catalog = Catalog(used)
    assert all(isinstance(each, Device) and each.size % MIB == 0 for each in catalog.devices())
    catalog.close()
