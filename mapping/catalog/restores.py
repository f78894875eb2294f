"""Restores in the catalog: which volumes a backup is being restored to.

How it works      A restore has a row from before its first write until its snapshot is committed, or until it
                  is abandoned. The transaction that commits the snapshot, rolls the volume back or forgets it
                  deletes the row.
Invariants        RT1 a volume with a row is incomplete; RT2 the base that a row names exists (a foreign key).
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from uuid import UUID

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.restores import RestoreRecord


class Restores:
    """The incomplete restores of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, record: RestoreRecord) -> None:
        """Record a restore; its volume has none."""
        with self._database.transaction() as connection:
            insert_restore(connection, record)

    def put_back(self, record: RestoreRecord) -> None:
        """Record a restore that a transaction was to end; it may have, or not."""
        with self._database.transaction() as connection:
            delete_restore(connection, record.volume)
            insert_restore(connection, record)

    def of(self, volume: VolumeId) -> RestoreRecord | None:
        """The restore to this volume, if one was begun and is not complete."""
        rows = self._database.rows("SELECT * FROM restore WHERE volume = ?", volume)
        return _record(rows[0]) if rows else None

    def all(self) -> list[RestoreRecord]:
        """All of them, by volume."""
        return [_record(row) for row in self._database.rows("SELECT * FROM restore ORDER BY volume")]


def insert_restore(connection: sqlite3.Connection, record: RestoreRecord) -> None:
    """Record a restore, in a transaction that is under way."""
    connection.execute(
        "INSERT INTO restore (volume, stream, source, snapshot, snapshot_uuid, base, begun_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            record.volume,
            str(record.stream),
            record.source,
            record.snapshot,
            str(record.snapshot_uuid),
            record.base,
            record.begun_ns,
        ),
    )


def delete_restore(connection: sqlite3.Connection, volume: VolumeId) -> None:
    """The restore to this volume is complete, or is abandoned, by a transaction that is under way."""
    connection.execute("DELETE FROM restore WHERE volume = ?", (volume,))


def _record(row: sqlite3.Row) -> RestoreRecord:
    values = dict(row)
    values["stream"] = UUID(values["stream"])
    values["snapshot_uuid"] = UUID(values["snapshot_uuid"])
    return RestoreRecord(**values)
