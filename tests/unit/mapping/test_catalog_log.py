"""test_catalog_log: the log of the catalog stays short, however many read; files removed while it is open."""

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogFailed

READERS = 3
LIMIT = 6 << 20


@contextmanager
def readings_that_overlap(database: Database) -> Iterator[None]:
    """There is a reading at every moment: each ends only when the next one has begun."""
    stop = threading.Event()
    begun = [threading.Event() for _ in range(READERS)]

    def read(number: int) -> None:
        for turn in itertools.count():
            with database.reading():
                database.rows("SELECT * FROM catalog")
                begun[number].set()
                following = begun[(number + 1) % READERS]
                while not following.wait(0.01) and not stop.is_set():
                    pass
                if turn:
                    following.clear()
                time.sleep(0.02)
            if stop.is_set():
                return

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_readings_that_overlap_do_not_make_the_log_long(tmp_path: Path, *, alone: bool) -> None:
    database = Database(tmp_path / "catalog.db", alone=alone)
    log = tmp_path / "catalog.db-wal"
    longest = 0
    with database.transaction() as connection:
        connection.execute("CREATE TABLE some (bytes BLOB)")
    with readings_that_overlap(database):
        for _ in range(400):
            with database.transaction() as connection:
                connection.execute("INSERT INTO some VALUES (zeroblob(40000))")
                connection.execute("DELETE FROM some")
            longest = max(longest, log.stat().st_size)
    assert longest < LIMIT, "it grew with each transaction"
    database.close()


def test_the_log_is_short_again_after_a_long_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyvol.mapping.catalog.database._WAIT_MS", 20)
    database = Database(tmp_path / "catalog.db")
    log = tmp_path / "catalog.db-wal"
    with database.transaction() as connection:
        connection.execute("CREATE TABLE some (bytes BLOB)")
    begun, end = threading.Event(), threading.Event()

    def read() -> None:
        with database.reading():
            begun.set()
            end.wait()

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    for _ in range(100):
        with database.transaction() as connection:
            connection.execute("INSERT INTO some VALUES (zeroblob(40000))")
            connection.execute("DELETE FROM some")
    assert log.stat().st_size > 3 << 20, "the reading sees what was"
    end.set()
    thread.join()
    for _ in range(60):
        with database.transaction() as connection:
            connection.execute("INSERT INTO some VALUES (zeroblob(40000))")
            connection.execute("DELETE FROM some")
    assert log.stat().st_size <= 3 << 20, "it was taken in, and the file made shorter"
    database.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_committed_to_a_catalog_that_was_removed(tmp_path: Path, *, replaced: bool) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog(path)
    path.rename(tmp_path / "away")
    if replaced:
        shutil.copy(tmp_path / "away", path)
    with pytest.raises(CatalogFailed, match="was removed or replaced"):
        catalog.settings.set("some", "thing")
    (tmp_path / "away").rename(path)
    assert catalog.settings.get("some") is None
    catalog.settings.set("some", "thing")
    catalog.close()


@pytest.mark.parametrize("name", ["catalog.db-wal", "catalog.mark"])
def test_what_is_committed_after_a_file_was_removed_is_there_after_a_kill(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").mkdir()
    catalog = Catalog(tmp_path / "state" / "catalog.db")
    catalog.settings.set("some", "thing")
    (tmp_path / "state" / name).unlink()
    for turn in range(3):
        catalog.settings.set("some", f"thing {turn}")
        shutil.copytree(tmp_path / "state", tmp_path / f"killed-{turn}")
        killed = Catalog(tmp_path / f"killed-{turn}" / "catalog.db")
        assert killed.settings.get("some") == f"thing {turn}"
        killed.close()
    catalog.close()
