"""Sums of the catalog's rows, because SQLite has no checksums of its own.

How it works      `table_sum` has, for each table, the number of its rows and the sum of their digests, modulo
                  2^62, which does not depend on their order. A digest is 62 bits of the BLAKE2b of the
                  table's name and the row's values; docs/formats-labels.md has the details. Temporary
                  triggers, made from the schema for every table, keep the sums in each statement. SQLite's
                  own tables cannot have triggers: the sum of `sqlite_sequence` is renewed before each commit,
                  that of `sqlite_master`, which is the schema, when the catalog is made or migrated.
Invariants        SU1 at each commit, `table_sum` has a row for every table but itself, and each is right.
Owner and locks   As in database.py.
Errors            sqlite3.DatabaseError where SQLite cannot read the file.
"""

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b

FIRST_VERSION = 4
"""The first format version that has sums."""
TABLE = "table_sum"
SCHEMA = "sqlite_master"
SEQUENCE = "sqlite_sequence"
_MASK = (1 << 62) - 1
"""62 bits, so that SQLite can add two of them in its integers."""
_SCHEMA_COLUMNS = ("type", "name", "tbl_name", "sql")  # the page where a table begins may change


class _Sum:
    """The aggregate function `digest_sum`."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, *values: object) -> None:
        """One more row."""
        self._sum += _digest(*values)

    def finalize(self) -> int:
        """The sum."""
        return self._sum & _MASK


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that the statements of this module use."""
    connection.create_function("digest", -1, _digest, deterministic=True)
    connection.create_aggregate("digest_sum", -1, _Sum)


def keep(connection: sqlite3.Connection) -> None:
    """Have the sums follow every change that this connection makes from now on."""
    add_functions(connection)
    connection.execute("PRAGMA recursive_triggers = ON")  # else REPLACE deletes rows without their triggers
    statements = []
    for table in _tables(connection):
        if table in (SCHEMA, SEQUENCE):
            continue
        new, old = _values(connection, table, "NEW."), _values(connection, table, "OLD.")
        for event, rows, change in (
            ("INSERT", "+ 1", f"+ digest({new})"),
            ("DELETE", "- 1", f"- digest({old})"),
            ("UPDATE", "+ 0", f"- digest({old}) + digest({new})"),
        ):
            statements.append(
                f'CREATE TEMP TRIGGER "{table} {event}" AFTER {event} ON main."{table}" BEGIN'
                f" UPDATE {TABLE} SET rows = rows {rows}, sum = (sum {change}) & {_MASK}"
                f" WHERE name = '{table}'; END;"
            )
    connection.executescript("\n".join(["BEGIN;", *statements, "COMMIT;"]))  # quicker than each alone


def renew_sequence(connection: sqlite3.Connection) -> None:
    """Bring the sum of `sqlite_sequence` up to date, before a commit."""
    connection.execute(
        f"UPDATE {TABLE} SET (rows, sum) = (SELECT count(*), {_sum_of(connection, SEQUENCE)} FROM {SEQUENCE})"
        f" WHERE name = '{SEQUENCE}'"
    )


def renew_all(connection: sqlite3.Connection) -> None:
    """Sum up all tables, in the transaction that makes or migrates a catalog."""
    add_functions(connection)
    connection.execute(f"DELETE FROM {TABLE}")
    for table in _tables(connection):
        connection.execute(
            f"INSERT INTO {TABLE} SELECT '{table}', count(*), {_sum_of(connection, table)} FROM \"{table}\""
        )


def problems(connection: sqlite3.Connection) -> Iterator[str]:
    """What does not match its sum, each a clause that follows the catalog's name."""
    add_functions(connection)
    kept = {name: (rows, total) for name, rows, total in connection.execute(f"SELECT * FROM {TABLE}")}
    for table in _tables(connection):
        query = f'SELECT count(*), {_sum_of(connection, table)} FROM "{table}"'
        if kept.pop(table, None) != tuple(connection.execute(query).fetchone()):
            what = "its schema does" if table == SCHEMA else f"the rows of its table {table} do"
            yield f"{what} not match the checksum"
    for name in kept:
        yield f"its table {name} is missing"


def _tables(connection: sqlite3.Connection) -> list[str]:
    """All tables that have a sum."""
    query = f"SELECT name FROM {SCHEMA} WHERE type = 'table' AND name != '{TABLE}' ORDER BY name"
    return [SCHEMA, *(row[0] for row in connection.execute(query))]


def _values(connection: sqlite3.Connection, table: str, prefix: str = "") -> str:
    """The arguments of a digest: the table's name, and the columns in their order."""
    if table == SCHEMA:
        columns = list(_SCHEMA_COLUMNS)
    else:
        rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        columns = [row[0] for row in rows]
    return ", ".join([f"'{table}'", *(f'{prefix}"{column}"' for column in columns)])


def _sum_of(connection: sqlite3.Connection, table: str) -> str:
    return f"ifnull(digest_sum({_values(connection, table)}), 0)"  # NULL where there are no rows


def _digest(*values: object) -> int:
    return int.from_bytes(blake2b(ascii(values).encode(), digest_size=8).digest(), "little") & _MASK
