"""Copies of the catalog: for a backup, and before an upgrade.

How it works      SQLite returns the pages of one state as bytes, including its log: that is a complete file.
                  Before a start changes the format of a catalog, the file is copied to
                  `catalog.db.before-vN`, N being the new format; nothing has the catalog open then, and its
                  log is empty. Only the copy of the latest upgrade is kept.
Invariants        CY1 the format is not changed before the copy is durable and was examined; CY2 an older copy
                  is removed only then; CY3 if an upgrade over several formats was interrupted, the copy stays
                  that from before the first step.
Owner and locks   `whole` may be called by any thread; `keep_before_upgrade` by the start, before the
                  catalog is opened.
Errors            CatalogUnreadable, CatalogDamaged, StateFull (the copy does not fit); then nothing is
                  changed.
"""

import logging
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from polyvol.mapping.catalog.examine import format_version, reading
from polyvol.mapping.catalog.failures import failure
from polyvol.mapping.catalog.readers import Readers
from polyvol.mapping.durable import sync_directory, write_file
from polyvol.mapping.errors import PolyvolError, StateFull
from polyvol.mapping.no_space import NEEDED, is_no_space

BEFORE = ".before-v"
"""What follows the catalog's name in the name of the copy that is kept before an upgrade."""
_log = logging.getLogger("polyvol")


def whole(path: Path, readers: Readers) -> bytes:
    """The catalog as it is now, as one file."""
    try:
        with readers.one_state(), readers.connection() as connection:
            return connection.serialize()
    except sqlite3.DatabaseError as error:
        raise failure(path, error, reading=True) from error


def keep_before_upgrade(path: Path, latest: int, examine: Callable[[Path], bool]) -> None:
    """Copy the catalog if its format is older than this; `examine` raises if a file is not to be used."""
    version = _format_of(path, path)
    if version >= latest:
        return
    copy = path.with_name(f"{path.name}{BEFORE}{latest}")
    with suppress(PolyvolError, OSError):
        if copy.stat().st_size and _format_of(path, copy) < version:
            return  # CY3
    new = copy.with_name(f"{copy.name}.new")
    try:
        write_file(new, path.read_bytes(), mode=0o600)
        examine(new)
        new.rename(copy)
        sync_directory(path.parent)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if is_no_space(error):
            what = f"the copy of the catalog that is kept before its upgrade, {copy.name}, cannot be made"
            raise StateFull(path=path.parent, what=what, need=NEEDED) from error
        raise
    _log.info("the catalog is upgraded from format %d to %d; its copy is %s", version, latest, copy)
    ours = re.compile(re.escape(f"{path.name}{BEFORE}") + r"\d+(\.new)?")
    for older in path.parent.iterdir():
        if older != copy and ours.fullmatch(older.name) and older.is_file():
            older.unlink(missing_ok=True)  # CY2


def _format_of(path: Path, file: Path) -> int:
    with reading(path, file) as connection:
        return format_version(connection)
