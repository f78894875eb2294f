"""Readers: connections that read the catalog while another one writes it.

How it works      A thread that reads borrows an idle connection, or opens one. In WAL mode a read never waits
                  for a transaction, nor for its sync. Within `one_state` a thread keeps one connection with
                  one read transaction. A thread in a write transaction reads through that.
Invariants        RD1 a thread in `one_state` begins no transaction, because it would decide by an old state;
                  RD2 when `close` has returned, no connection is opened any more.
Owner and locks   Any thread may call; `_lock` over the idle connections, held for a look.
Errors            sqlite3.DatabaseError.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IDLE_MAX = 8
"""How many idle connections are kept."""


def connect(path: Path, *, alone: bool) -> sqlite3.Connection:
    """A connection to a file that is there. `alone`: no other process can open the file, and SQLite keeps its
    index of the log in memory, for all connections of this process, so that it maps no file.
    (`PRAGMA locking_mode` does that for one connection only.)"""
    uri = f"{path.absolute().as_uri()}?mode=rw{'&vfs=unix-excl' if alone else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


class _Mine(threading.local):
    """What a thread reads through now, if that is not for one query only; `fixed`: it is in `one_state`."""

    connection: sqlite3.Connection | None = None
    fixed = False


class Readers:
    """The reading connections of one catalog."""

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self._path = path
        self._alone = alone
        self._mine = _Mine()
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    def close(self) -> None:
        """Close the idle ones, and each other one when it is given back; idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection for reading."""
        mine = self._mine.connection
        if mine is not None:
            yield mine
            return
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """Within this context, this thread sees the state of its begin; if nested, that of the outer one."""
        if self._mine.connection is not None:
            yield
            return
        with self.connection() as connection:
            connection.execute("BEGIN")
            try:
                connection.execute("SELECT commits FROM catalog").fetchone()  # BEGIN alone reads nothing
                self._mine.connection, self._mine.fixed = connection, True
                yield
            finally:
                self._mine.connection, self._mine.fixed = None, False
                if connection.in_transaction:  # SQLite ends it itself after some errors
                    connection.execute("ROLLBACK")

    @contextmanager
    def instead(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Have this thread read through a connection in which it has a transaction (RD1)."""
        if self._mine.fixed:
            raise RuntimeError("a change within a reading")
        before, self._mine.connection = self._mine.connection, connection
        try:
            yield
        finally:
            self._mine.connection = before

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise sqlite3.OperationalError("it is closed")  # RD2
            if self._idle:
                return self._idle.pop()
        connection = connect(self._path, alone=self._alone)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.DatabaseError):
                connection.execute("ROLLBACK")
        with self._lock:
            keep = not self._closed and len(self._idle) < IDLE_MAX
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()
