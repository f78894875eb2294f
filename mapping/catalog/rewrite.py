"""Rewriting the catalog: after an unclean stop, when a sync may have failed; and making a new one.

How it works      A process that was killed leaves SQLite's write-ahead file (`-wal`) beside the catalog. If
                  one of its syncs had failed, the kernel may treat pages of the two files as clean that the
                  disk does not have: SQLite would trust them, and lose later commits with them.
                  So both are copied; the copy, checkpointed and synced, is renamed to `.renewed`: from then
                  on it is the catalog. A process that finds a `.renewed` removes the old `-wal` and renames
                  it over the old file.
Invariants        RW1 the old files stay as they are until `.renewed` is durable; RW2 the old `-wal` is
                  removed, durably, before the new file has the catalog's name, so that no other file replays
                  it; RW3 what becomes the catalog was examined: damage is refused, not copied.
Errors            OSError, sqlite3.DatabaseError, and those of the examination; then the catalog is unchanged.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from polyvol.mapping.durable import sync_directory, sync_file


def rewrite(path: Path, examine: Callable[[Path], bool]) -> bool | None:
    """Rewrite the catalog's file if an earlier process left a log; `examine` raises for an unusable file, and
    returns whether it has a catalog. Returns that result; None: there was nothing to rewrite."""
    log = Path(f"{path}-wal")
    renewed = path.with_name(f"{path.name}.renewed")
    if renewed.exists():
        there = examine(renewed)
    else:
        if not log.exists() or log.stat().st_size == 0:
            return None
        if not path.exists() or path.stat().st_size == 0:
            return None  # SQLite would remove the log
        copy = path.with_name(f"{path.name}.renewing")
        _copy(path, copy)
        try:
            _take_in(copy)
            there = examine(copy)  # RW3
        except BaseException:
            _remove(copy)
            raise
        sync_file(copy)
        copy.rename(renewed)
        sync_directory(path.parent)  # RW1
    log.unlink(missing_ok=True)
    Path(f"{path}-shm").unlink(missing_ok=True)
    sync_directory(path.parent)  # RW2
    renewed.rename(path)
    sync_directory(path.parent)
    return there


def put_new(path: Path, make: Callable[[sqlite3.Connection], None]) -> None:
    """Make a new catalog, which `make` fills: it gets its name complete and durable, or not at all."""
    copy = path.with_name(f"{path.name}.renewing")
    _remove(copy)
    copy.touch(mode=0o600)  # SQLite gives its other files the mode of this one
    with _alone(copy) as connection:
        make(connection)
    _take_in(copy)
    sync_file(copy)
    copy.rename(path)
    sync_directory(path.parent)


def _copy(path: Path, copy: Path) -> None:
    _remove(copy)
    for suffix in ("", "-wal"):
        new = Path(f"{copy}{suffix}")
        new.touch(mode=0o600)
        new.write_bytes(Path(f"{path}{suffix}").read_bytes())


def _take_in(copy: Path) -> None:
    """Put the log's pages where they belong."""
    with _alone(copy) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy, "nobody else knows the copy"
    Path(f"{copy}-wal").unlink(missing_ok=True)  # it is empty, and SQLite may have failed to remove it


@contextlib.contextmanager
def _alone(copy: Path) -> Iterator[sqlite3.Connection]:
    """A connection that maps no file (DB4 of database.py)."""
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        yield connection


def _remove(copy: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
