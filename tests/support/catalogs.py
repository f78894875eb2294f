"""catalogs: changing the catalog of a daemon that does not run, as the daemon would: with its sums."""

import sqlite3
from contextlib import closing
from pathlib import Path

from polyvol.mapping.catalog import sums


def change(path: Path, statement: str) -> None:
    """Run a statement on a catalog; its sums follow."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        sums.keep(connection)
        connection.execute("BEGIN")
        connection.execute(statement)
        sums.renew_sequence(connection)
        connection.execute("COMMIT")
