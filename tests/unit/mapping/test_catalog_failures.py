"""test_catalog_failures: only what SQLite says about a file's content is called damage."""

import errno
import sqlite3
import threading
from pathlib import Path

import pytest

from polyvol.mapping.catalog.failures import failure
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import (
    CatalogDamaged,
    CatalogFailed,
    CatalogUnreadable,
    PolyvolError,
    StateFull,
)


def of_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("in SQLite's words")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "reading", "writing"),
    [
        (of_sqlite(sqlite3.SQLITE_FULL), StateFull, StateFull),
        (of_sqlite(sqlite3.SQLITE_IOERR_READ), CatalogUnreadable, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_CANTOPEN), CatalogUnreadable, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_CORRUPT), CatalogDamaged, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_NOTADB), CatalogDamaged, CatalogFailed),
        (OSError(errno.ENOSPC, "no"), StateFull, StateFull),
        (OSError(errno.EDQUOT, "no"), StateFull, StateFull),
        (OSError(errno.EROFS, "no"), CatalogUnreadable, CatalogFailed),
        (OSError(errno.EIO, "no"), CatalogUnreadable, CatalogFailed),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), CatalogDamaged, CatalogFailed),
    ],
)
def test_each_error_is_of_its_kind(
    tmp_path: Path, error: Exception, reading: type[PolyvolError], writing: type[PolyvolError]
) -> None:
    path = tmp_path / "catalog.db"
    assert type(failure(path, error, reading=True)) is reading
    assert type(failure(path, error)) is writing
    assert list(tmp_path.iterdir()) == []


def test_what_sqlite_hides_is_found_by_a_small_file(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "catalog.db"
    found = failure(gone, of_sqlite(sqlite3.SQLITE_IOERR_WRITE))
    assert "No such file or directory" in found.message


def test_probes_at_the_same_time_meet_no_error_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.db"
    error = of_sqlite(sqlite3.SQLITE_IOERR_WRITE)
    others: list[str] = []

    def fsync(fd: int) -> None:
        monkeypatch.undo()
        thread = threading.Thread(target=lambda: others.append(failure(path, error).message))
        thread.start()
        thread.join()

    monkeypatch.setattr("os.fsync", fsync)
    assert [failure(path, error).message] == others
    assert "in SQLite's words" in others[0]
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_is_mapped_nowhere(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")
    try:
        assert (tmp_path / "catalog.db-wal").exists()
        assert not (tmp_path / "catalog.db-shm").exists()
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path) not in maps
    finally:
        catalog.close()
