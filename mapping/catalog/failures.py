"""Failures: maps errors of SQLite, and of calls on the catalog's files, to user errors.

How it works      There are three moments: a file is opened, is read while it is in use, or is written. SQLite
                  hides the errno of some system errors; then a small file is made in the same directory,
                  whose error is the answer. An error of SQLite about a file's content is damage if the file
                  is being opened. For a file in use it is not, because a failing disk looks the same. Errors
                  about the file system are never damage: no space, read-only, a disk that does not answer.
                  Users read polyvol's own words, not SQLite's.
Errors            None: errors are returned, not raised.
"""

import errno
import logging
import os
import sqlite3
from pathlib import Path

from polyvol.mapping.errors import CatalogDamaged, CatalogFailed, CatalogUnreadable, PolyvolError, StateFull
from polyvol.mapping.no_space import NEEDED, NO_SPACE, probe_path
from polyvol.mapping.os_errors import reason, reason_of

_log = logging.getLogger("polyvol")
_PROBE_BYTES = 8192
_LOCKED = "another program has it locked, which has to end first"
_WORDS = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_NOMEM: "not enough memory",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CORRUPT: "its content is damaged",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database, or its beginning is damaged",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_READONLY: "it cannot be opened for writing",
}
"""What users see of SQLite's primary result codes."""
_FILE_SYSTEM = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL)
"""Primary result codes of SQLite that are about the file system, and not about what the file holds."""
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL)
"""Those that are about neither: another program, or too little memory."""


def failure(path: Path, error: Exception, *, opening: bool = False, reading: bool = False) -> PolyvolError:
    """The error to raise for one that was met with this file of the catalog. `opening`: while it was opened,
    so that what is not about the file system is about its content. `reading`: while it was read and in use.
    Neither: while it was written."""
    number = error.errno or 0 if isinstance(error, OSError) else None
    if isinstance(error, sqlite3.Error):
        number = _errno(error, path.parent)
    if number in NO_SPACE:
        return StateFull(path=path.parent, what=f"the catalog {path.name} cannot be written", need=NEEDED)
    why = reason_of(number, path) if number else _words(error)
    if reading:
        return CatalogUnreadable(path=path, why=why)
    if not opening:
        return CatalogFailed(path=path, why=why)
    if number is None:
        return CatalogDamaged(path=path, why=why)
    return CatalogUnreadable(path=path, why=why)


def _words(error: Exception) -> str:
    """What is wrong with the file, as a clause; SQLite's and Python's own words are for the log."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if isinstance(error, UnicodeError):
        words = "a text in it is not UTF-8"
    elif isinstance(error, sqlite3.Error):
        words = _WORDS.get(code & 0xFF) or f"SQLite refused a statement (result code {code})"
    else:
        words = reason(error)
    _log.error("%s: %s", words, error)
    return words


def _errno(error: sqlite3.Error, directory: Path) -> int | None:
    """The number of the system's error behind one of SQLite's; 0 if it is not known, None if there is none:
    it is about the file's content or the statement."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return errno.ENOSPC
    if code in _PASSING:
        return 0
    return _probe(directory) if code in _FILE_SYSTEM else None


def _probe(directory: Path) -> int:
    """The number of the error that a small new file in a directory meets; 0 for none."""
    path = probe_path(directory)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, bytes(_PROBE_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
            path.unlink()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
