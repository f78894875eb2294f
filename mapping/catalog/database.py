"""The catalog's file: opening it, its format version, and transactions.

How it works      SQLite in WAL mode with synchronous=FULL, one connection for the process, used by one thread
                  at a time under a lock. `user_version` is the format version: a new file gets schema.sql, an
                  older one its migrations, each with its version in one transaction.
Invariants        B1 a file of an unknown version, or of another program, is left as it is; B2 nobody sees the
                  middle of a transaction.
Durability        When `transaction` has ended without an error, its changes survive power loss, also where
                  a sync of an earlier process has failed (renewal.py).
Errors            CatalogVersion, CatalogDamaged, CatalogFailed.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyvol.mapping.catalog.renewal import renew
from polyvol.mapping.errors import CatalogDamaged, CatalogFailed, CatalogVersion

LATEST_VERSION = 4
_HERE = Path(__file__).parent


class Database:
    """An open catalog file."""

    def __init__(self, path: Path, *, latest: int = LATEST_VERSION, migrations: Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            renew(path, latest)
            path.touch(mode=0o600)  # SQLite gives its other files the mode of this one
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(latest, migrations or _HERE / "migrations")
            except BaseException:
                self._connection.close()
                raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise CatalogDamaged(path=path, why=error) from error

    def close(self) -> None:
        """Close it; idempotent."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what is done within."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                    raise CatalogFailed(path=self._path, why=error) from error
                raise

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise CatalogFailed(path=self._path, why=error) from error

    def _prepare(self, latest: int, migrations: Path) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA busy_timeout = 5000")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version > latest or version < 0:
            raise CatalogVersion(path=self._path, version=version, latest=latest)
        if version == 0 and tables:
            raise CatalogDamaged(path=self._path, why="it is the database of another program")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if version == 0:
            self._run_script((_HERE / "schema.sql").read_text(), LATEST_VERSION)
            version = LATEST_VERSION
        for step in range(version + 1, latest + 1):
            self._run_script((migrations / f"to_{step}.sql").read_text(), step)

    def _run_script(self, script: str, version: int) -> None:
        # executescript runs the statements as they are, so the transaction is written into the text.
        text = f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};\nCOMMIT;"
        try:
            self._connection.executescript(text)
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
