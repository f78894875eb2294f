"""Copies of the catalog: for a backup, and the one that is kept before an upgrade."""

import errno
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from polyvol.mapping.catalog import database as databases
from polyvol.mapping.catalog.database import LATEST_VERSION, Database
from polyvol.mapping.catalog.examine import Examiner
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogDamaged, StateFull
from tests.support.catalogs import device, used_catalog

MIGRATIONS = Path(databases.__file__).parent / "migrations"
COPY = f"catalog.db.before-v{LATEST_VERSION}"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A catalog of format 1."""
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "catalog_v1.sql").read_text())
        connection.execute("PRAGMA user_version = 1")
    return path


def format_of(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


def test_an_upgrade_keeps_what_was_before(old: Path) -> None:
    before = old.read_bytes()
    earlier = old.with_name("catalog.db.before-v1")
    earlier.write_bytes(b"of an earlier upgrade")
    Catalog(old).close()
    copy = old.with_name(COPY)
    assert copy.read_bytes() == before
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not earlier.exists()
    assert format_of(old) == LATEST_VERSION
    Catalog(old).close()
    assert copy.read_bytes() == before


def test_of_earlier_copies_none_is_removed_that_has_another_name(old: Path) -> None:
    kept = old.with_name("catalog.db.before-v1.keep")
    kept.write_bytes(b"of an administrator")
    directory = old.with_name("catalog.db.before-v2")
    directory.mkdir()
    Catalog(old).close()
    assert kept.read_bytes() == b"of an administrator"
    assert directory.is_dir()


def test_nothing_is_kept_where_nothing_is_upgraded(tmp_path: Path) -> None:
    path = used_catalog(tmp_path)
    Catalog(path).close()
    assert not list(tmp_path.glob("*before*"))


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_copy_without_room_refuses_the_upgrade(
    old: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "rename", full)
        with pytest.raises(StateFull, match=f"{COPY}, cannot be made"):
            Catalog(old)
    assert old.read_bytes() == before
    assert [each.name for each in old.parent.iterdir()] == [old.name]
    Catalog(old).close()
    assert format_of(old) == LATEST_VERSION


def test_an_upgrade_that_was_interrupted_keeps_what_was_before_its_first_step(old: Path) -> None:
    before = old.read_bytes()
    failing = old.parent / "migrations"
    failing.mkdir()
    for step in range(2, LATEST_VERSION + 1):
        text = (MIGRATIONS / f"to_{step}.sql").read_text()
        (failing / f"to_{step}.sql").write_text(text if step < LATEST_VERSION else "wrong;")
    with pytest.raises(CatalogDamaged):
        Database(old, migrations=failing)
    assert format_of(old) == LATEST_VERSION - 1
    Catalog(old).close()
    assert format_of(old) == LATEST_VERSION
    assert old.with_name(COPY).read_bytes() == before


def test_a_catalog_that_was_put_back_and_used_is_kept_as_it_is_then(old: Path) -> None:
    before = old.read_bytes()
    Catalog(old).close()
    for name in ("catalog.db", "catalog.mark"):
        old.with_name(name).unlink()
    old.write_bytes(before)
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("INSERT INTO setting VALUES ('since', 'then')")
    changed = old.read_bytes()
    Catalog(old).close()
    assert old.with_name(COPY).read_bytes() == changed


def test_a_copy_is_one_committed_state(tmp_path: Path) -> None:
    path = used_catalog(tmp_path)
    catalog = Catalog(path)
    catalog.devices.add(device("committed"))  # it is in the log only
    devices, snapshots = catalog.devices.all(), catalog.snapshots.all()
    with ThreadPoolExecutor(1) as others, catalog._database.transaction() as connection:
        connection.execute("UPDATE device SET name = 'later' WHERE name = 'committed'")
        data = others.submit(catalog.whole).result(timeout=30)
    catalog.close()
    copy = tmp_path / "copy.db"
    copy.write_bytes(data)
    assert Examiner(copy, LATEST_VERSION, None).examine(copy)
    again = Catalog(copy, accept_older=True)
    assert (again.devices.all(), again.snapshots.all()) == (devices, snapshots)
    again.close()
