"""Examining a catalog's file before it is used: whether it is complete, correct and the newest.

How it works      The file is opened with SQLite's `immutable`, so that nothing is written, not even SQLite's
                  own files next to it. Its version, its structure (integrity_check)
                  and the sums of its rows (sums.py) are checked, and its count of commits is compared with
                  the mark's. An empty or missing one is new only if no other file shows that a catalog
                  existed.
Invariants        EX1 nothing is changed; EX2 a file that passes has exactly the rows that its last
                  transaction left, and no later one was committed.
Errors            CatalogVersion, CatalogDamaged, CatalogMissing, CatalogOlder, CatalogUnmarked, OSError.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from polyvol.mapping.catalog import sums
from polyvol.mapping.catalog.failures import failure
from polyvol.mapping.catalog.mark import Mark
from polyvol.mapping.errors import (
    CatalogDamaged,
    CatalogMissing,
    CatalogOlder,
    CatalogUnmarked,
    CatalogVersion,
)

JSON_COLUMNS = {("schedule", "keep"), ("scrub", "result"), ("thaw_owed", "call")}
"""Columns that hold JSON, by table and name."""
_UUID_GLOB = "-".join("[0-9a-f]" * count for count in (8, 4, 4, 4, 12))


class Examiner:
    """Examines the catalog of this path, and copies of it. `mark` None: whether it is the newest does not
    matter."""

    def __init__(self, path: Path, latest: int, mark: Mark | None) -> None:
        self._path = path
        self._latest = latest
        self._mark = mark

    def examine(self, file: Path) -> bool:
        """Examine this file, which is the catalog or will become it. Returns whether one exists; False: one
        must be made."""
        if not file.exists() or file.stat().st_size == 0:
            self._refuse_if_used("missing" if not file.exists() else "empty")
            return False
        with reading(self._path, file) as connection:
            version = format_version(connection)
            tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version > self._latest or version < 0:
                raise CatalogVersion(path=self._path, version=version, latest=self._latest)
            if version == 0 and tables:
                raise CatalogDamaged(path=self._path, why="it is the database of another program")
            for problem in content_problems(file, connection, version):
                raise CatalogDamaged(path=self._path, why=problem)
            if version == 0:
                self._refuse_if_used("empty")
            elif self._mark is not None:
                self._compare(self._mark, *_identity(connection, version))
            return version > 0

    def _refuse_if_used(self, how: str) -> None:
        """CatalogMissing if other files show that a catalog existed."""
        directory = self._path.parent
        files = [self._path.with_suffix(".mark"), Path(f"{self._path}-wal")]
        traces = [file for file in files if file.exists() and file.stat().st_size]
        for name in ("volumes", "devices"):
            if (directory / name).is_dir():
                traces += sorted((directory / name).iterdir())[:1]
        if traces:
            raise CatalogMissing(path=self._path, how=how, trace=traces[0])

    def _compare(self, mark: Mark, catalog: str | None, commits: int) -> None:
        said, newest = mark.read(), mark.newest()
        if said is None and commits <= 1:
            return
        if newest is None:
            why = "is missing" if said is None else said[0]
            raise CatalogUnmarked(path=self._path, mark=mark.path, why=why)
        if catalog is not None and str(newest.catalog) != catalog:
            raise CatalogUnmarked(path=self._path, mark=mark.path, why="belongs to another catalog")
        if newest.commits > commits:
            raise CatalogOlder(path=self._path, commits=commits, mark=mark.path, marked=newest.commits)


@contextlib.contextmanager
def reading(path: Path, file: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file without a log, which is the catalog of this path or a copy. It reads only and
    makes no other files. CatalogDamaged where SQLite cannot read it."""
    uri = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise failure(path, error, opening=True) from error
    except (UnicodeError, MemoryError) as error:  # Python's module raises them for messages and lengths
        raise CatalogDamaged(path=path, why="SQLite cannot read its schema") from error


def format_version(connection: sqlite3.Connection) -> int:
    """The version of a catalog's format; 0 of a file that has none."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def content_problems(file: Path, connection: sqlite3.Connection, version: int) -> list[str]:
    """What SQLite finds wrong in a file that the connection reads, and what does not match its sum; each a
    clause that follows the catalog's name."""
    with file.open("rb") as opened:
        if opened.read(20)[18:] not in (b"\1\1", b"\2\2"):  # without and with a log; else SQLite only reads
            return ["its header does not allow writing"]
    found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    if found != ["ok"]:
        return [f"SQLite finds in it: {each}" for each in found]
    changed = sums.problems(connection) if version >= sums.FIRST_VERSION else reference_problems(connection)
    return list(changed) or list(_text_problems(connection))


def reference_problems(connection: sqlite3.Connection) -> Iterator[str]:
    """Rows that refer to missing rows, which only a change that a sum detects can cause."""
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of table {table} refers to a {parent} that is not there"


def _text_problems(connection: sqlite3.Connection) -> Iterator[str]:
    """Invalid texts, which a catalog without sums may have."""
    columns = {
        (row[0], row[1])
        for row in connection.execute(
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
        )
    }
    for table, column in sorted(columns & JSON_COLUMNS):
        if connection.execute(f"SELECT 1 FROM {table} WHERE NOT json_valid({column})").fetchone():
            yield f"column {column} of its table {table} has a text that is not JSON"
    for table, column in sorted(columns):
        if column in ("uuid", "cut"):
            query = f"SELECT 1 FROM {table} WHERE {column} NOT GLOB ?"
            if connection.execute(query, (_UUID_GLOB,)).fetchone():
                yield f"column {column} of its table {table} has a text that is not a UUID"


def _identity(connection: sqlite3.Connection, version: int) -> tuple[str | None, int]:
    """The UUID, which the oldest ones got after they were made, and the count of commits, 0 before there was
    one."""
    commits = "commits" if version >= sums.FIRST_VERSION else "0"
    row = connection.execute(f"SELECT uuid, {commits} FROM catalog").fetchone()
    return (None, 0) if row is None else row
