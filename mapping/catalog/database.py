"""The catalog's file: opening it, its format version, and transactions.

How it works      SQLite in WAL mode with synchronous=FULL. One connection writes, used by one thread at a
                  time under a lock; each reading thread borrows its own connection (readers.py), so that it
                  never waits for a transaction. `user_version` is the format version: a new file gets
                  schema.sql, an older one its migrations, each with its version in one transaction; before
                  that a copy is made (copies.py). A file is examined (examine.py) before it is used;
                  `catalog.mark` has the number of commits after each one (mark.py).
Invariants        DB1 a file of an unknown version, of another program, damaged, or older than its mark is not
                  changed; DB2 transactions are atomic for readers; DB3 each transaction advances
                  `catalog.commits` by one and leaves the sums of all rows right (sums.py); DB4 all queries
                  within one `reading` see one state, that of its begin, and nothing is changed within it; DB5
                  no file is mapped on a file system where a store to a mapped page may need new space: SQLite
                  keeps its index of the log in memory then, and no other process can open the file. So a full
                  file system is an error, not a SIGBUS; DB6 overlapping readers do not prevent a checkpoint:
                  a transaction that finds the log twice as long as its limit waits for the readers that block
                  it, up to a bound; DB7 nothing is committed to a file that is not at its path.
Durability        When `transaction` has ended without an error, its changes survive power loss, also where
                  a sync of an earlier process has failed (rewrite.py).
Errors            CatalogVersion, CatalogDamaged, CatalogMissing, CatalogOlder, CatalogUnmarked,
                  CatalogUnreadable, CatalogFailed, StateFull. CatalogConflict: a row that a change refers to
                  is gone, or its name is taken; the verbs check this first, under their locks.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import UUID, uuid4

from polyvol.mapping.catalog import copies, rewrite, sums
from polyvol.mapping.catalog.examine import Examiner, format_version
from polyvol.mapping.catalog.failures import failure
from polyvol.mapping.catalog.mark import Mark, Marked
from polyvol.mapping.catalog.readers import Readers, connect
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.errors import CatalogConflict, CatalogFailed
from polyvol.mapping.no_space import writes_in_place

LATEST_VERSION = 7
LOG_PAGES = 256
"""SQLite's log is taken in when it has so many pages of 4096 bytes, if no reading is in the way."""
_LOG_BYTES = LOG_PAGES * 4096
_WAIT_MS = 500
_WAIT_MAX_MS = 5000
"""How long a transaction waits for readings that are in the way: so long for each `_LOG_BYTES` that the log
has, and at most so long."""
_HERE = Path(__file__).parent


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def mark_of(path: Path) -> Path:
    """Where the mark of a catalog is."""
    return path.with_suffix(".mark")


class Database:
    """An open catalog file. `accept_older`: it is used although its mark says that there was a newer one, or
    cannot say so. `alone`: as in readers.py, also if the file system needs it. `room` is entered around
    transactions that free space."""

    def __init__(
        self,
        path: Path,
        *,
        latest: int = LATEST_VERSION,
        migrations: Path | None = None,
        accept_older: bool = False,
        alone: bool = False,
    ) -> None:
        self._path = path
        self._lock = threading.RLock()
        alone = alone or not writes_in_place(path.parent)  # DB5
        self._readers = Readers(path, alone=alone)
        self._mark = Mark(mark_of(path))
        self._marked = True
        self._log = path.with_name(f"{path.name}-wal")
        self._log_inode = 0
        self._log_due = 2 * _LOG_BYTES
        self.room: Callable[[], AbstractContextManager[None]] = nullcontext
        try:
            examiner = Examiner(path, latest, None if accept_older else self._mark)
            there = rewrite.rewrite(path, examiner.examine)
            if there is None:
                there = examiner.examine(path)
            if there:
                copies.keep_before_upgrade(path, latest, examiner.examine)
            else:
                rewrite.put_new(path, self._make)
            self._connection = connect(path, alone=alone)
            try:
                self._inode = _inode(path)
                self._prepare(latest, migrations or _HERE / "migrations")
                self._open_mark()
            except BaseException:
                self.close()
                raise
        except (sqlite3.Error, UnicodeError, OSError) as error:
            raise failure(path, error, opening=True) from error

    def close(self) -> None:
        """Close it; idempotent."""
        self._readers.close()
        with self._lock:
            self._connection.close()
            self._mark.close()

    @contextmanager
    def transaction(self, *, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """An atomic transaction. `frees`: it frees space, so it may use the reserve."""
        with (
            self.room() if frees else nullcontext(),
            self._lock,
            self._readers.instead(self._connection),
        ):
            connection = self._connection
            try:
                self._refuse_replaced()
                if not self._marked:
                    self._write_mark()
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("UPDATE catalog SET commits = commits + 1")
                sums.renew_sequence(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, OSError):
                    raise failure(self._mark.path, error) from error
                if isinstance(error, sqlite3.IntegrityError):
                    raise CatalogConflict() from error
                if isinstance(error, sqlite3.DatabaseError):
                    raise failure(self._path, error) from error
                raise
            self._commits += 1
            self._marked = False
            with suppress(OSError):  # it is committed; the next transaction begins with the mark
                self._write_mark()
            with suppress(OSError, sqlite3.DatabaseError):  # retried when the log is longer
                self._take_in_log()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the catalog for all that this thread reads within (DB4); may be nested."""
        try:
            with self._readers.one_state():
                yield
        except sqlite3.DatabaseError as error:
            raise failure(self._path, error, reading=True) from error

    def whole(self) -> bytes:
        """A copy of the catalog as it is now, as one file."""
        return copies.whole(self._path, self._readers)

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query: within `reading` or a transaction as that has them, else as of now."""
        try:
            with self._readers.connection() as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise failure(self._path, error, reading=True) from error

    def _refuse_replaced(self) -> None:
        """CatalogFailed if the file is not at its path any more: a commit to it would be lost."""
        try:
            replaced = _inode(self._path) != self._inode
        except FileNotFoundError:
            replaced = True
        if replaced:
            raise CatalogFailed(path=self._path, why="it was removed or replaced while polyvold had it open")

    def _take_in_log(self) -> None:
        """Restart the log if it is much longer than its limit (DB6), and after each transaction if it was
        removed or replaced, because the next start would not find it. New readers do not wait for this: they
        use the file alone as soon as it is complete."""
        try:
            status = self._log.stat()
            self._log_inode = self._log_inode or status.st_ino
            length = status.st_size if status.st_ino == self._log_inode else self._log_due
        except FileNotFoundError:
            length = self._log_due
        if length < self._log_due:
            return
        wait_ms = min(_WAIT_MAX_MS, _WAIT_MS * (length // _LOG_BYTES))
        self._connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
        try:
            busy = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
        finally:
            self._connection.execute("PRAGMA busy_timeout = 5000")
        self._log_due = (length if busy else _LOG_BYTES) + _LOG_BYTES

    def _prepare(self, latest: int, migrations: Path) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")  # when it begins again
        connection.execute("PRAGMA foreign_keys = OFF")  # so that a migration can replace a table
        for step in range(format_version(connection) + 1, latest + 1):
            self._run_script(connection, (migrations / f"to_{step}.sql").read_text(), step)
        connection.execute("PRAGMA foreign_keys = ON")
        sums.keep(connection)

    def _make(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        self._run_script(connection, (_HERE / "schema.sql").read_text(), LATEST_VERSION)

    @staticmethod
    def _run_script(connection: sqlite3.Connection, script: str, version: int) -> None:
        # executescript runs the statements as they are, so the transaction is written into the text.
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};")
            connection.execute(
                "INSERT OR IGNORE INTO catalog (id, uuid, created_ns) VALUES (1, ?, ?)",
                (str(uuid4()), wall_ns()),
            )
            if version >= sums.FIRST_VERSION:
                connection.execute("UPDATE catalog SET commits = max(commits, 1)")
                sums.renew_all(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _open_mark(self) -> None:
        """Make a mark with the catalog's count; the old mark was examined before, or does not count."""
        row = self._connection.execute("SELECT uuid, commits FROM catalog").fetchone()
        self.uuid, self._commits = UUID(row["uuid"]), int(row["commits"])
        marked = Marked(self.uuid, self._commits)
        if self._mark.newest() != marked:
            self._mark.make(marked)
        self._mark.open()

    def _write_mark(self) -> None:
        self._mark.write(Marked(self.uuid, self._commits))
        self._marked = True
