"""test_catalog_failures: only what SQLite says about a file's content is called damage."""

import errno
import sqlite3
import threading
from contextlib import closing
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
    ("error", "opening", "writing"),
    [
        (of_sqlite(sqlite3.SQLITE_FULL), StateFull, StateFull),
        (of_sqlite(sqlite3.SQLITE_IOERR_READ), CatalogUnreadable, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_CANTOPEN), CatalogUnreadable, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_CORRUPT), CatalogDamaged, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_NOTADB), CatalogDamaged, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_BUSY), CatalogUnreadable, CatalogFailed),
        (of_sqlite(sqlite3.SQLITE_ERROR), CatalogDamaged, CatalogFailed),
        (OSError(errno.ENOSPC, "no"), StateFull, StateFull),
        (OSError(errno.EDQUOT, "no"), StateFull, StateFull),
        (OSError(errno.EROFS, "no"), CatalogUnreadable, CatalogFailed),
        (OSError(errno.EIO, "no"), CatalogUnreadable, CatalogFailed),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), CatalogDamaged, CatalogFailed),
    ],
)
def test_each_error_is_of_its_kind(
    tmp_path: Path, error: Exception, opening: type[PolyvolError], writing: type[PolyvolError]
) -> None:
    path = tmp_path / "catalog.db"
    assert type(failure(path, error, opening=True)) is opening
    assert type(failure(path, error, reading=True)) is (
        StateFull if opening is StateFull else CatalogUnreadable
    )
    assert type(failure(path, error)) is writing
    for found in (failure(path, error, reading=True), failure(path, error)):
        assert not any(words in found.message for words in ("in SQLite's words", "codec", "Errno"))
    assert list(tmp_path.iterdir()) == []


def test_a_read_that_fails_says_so_and_not_in_the_words_of_sqlite(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")
    try:
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (tmp_path / "catalog.db").open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with pytest.raises(CatalogUnreadable) as told:
            catalog.volumes.all()
        assert "cannot be read: its content is damaged" in str(told.value)
        assert "malformed" not in str(told.value)
    finally:
        catalog.close()


def test_what_sqlite_hides_is_found_by_a_small_file(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "catalog.db"
    found = failure(gone, of_sqlite(sqlite3.SQLITE_IOERR_WRITE))
    assert found.message.endswith(f"the directory {gone.parent} does not exist")


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
    assert others[0].endswith(": input/output error")
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_on_another_kind_of_file_system_is_mapped_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyvol.mapping.catalog.database.writes_in_place", lambda _: False)
    catalog = Catalog(tmp_path / "catalog.db")
    try:
        assert (tmp_path / "catalog.db-wal").exists()
        assert not (tmp_path / "catalog.db-shm").exists()
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path) not in maps
    finally:
        catalog.close()
