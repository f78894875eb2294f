"""Rollbacks in the catalog: what each volume was rolled back to, and when.

How it works      A rollback is recorded in the transaction that records the snapshot of the old contents:
                  from then on the engine, which gets the row, shows the state that the volume was rolled back
                  to. Rows that have no effect any more are removed, one by one, when the engine reports them
                  (decision 0014).
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Mapping

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.restores import delete_restore
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.rollbacks import Rollback


class Rollbacks:
    """The rollbacks of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, volume: VolumeId) -> list[Rollback]:
        """A volume's, in order."""
        rows = self._database.rows("SELECT * FROM rollback WHERE volume = ? ORDER BY at", volume)
        return [Rollback(row["at"], row["to_epoch"], row["size"], row["to_size"]) for row in rows]

    def volumes(self) -> list[VolumeId]:
        """The ids of the volumes that have any."""
        return [row["volume"] for row in self._database.rows("SELECT DISTINCT volume FROM rollback")]

    def forget(self, volume: VolumeId, at: Epoch) -> None:
        """Remove one that has no effect any more."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM rollback WHERE volume = ? AND at = ?", (volume, at))


def insert_rollbacks(connection: sqlite3.Connection, rollbacks: Mapping[VolumeId, Rollback]) -> None:
    """Record rollbacks by volume id, in a transaction that is under way."""
    for volume, rollback in rollbacks.items():
        connection.execute(
            "INSERT INTO rollback (volume, at, to_epoch, size, to_size) VALUES (?, ?, ?, ?, ?)",
            (volume, rollback.at, rollback.to, rollback.size, rollback.to_size),
        )
        connection.execute(
            "UPDATE volume SET next_epoch = max(next_epoch, ?) WHERE id = ?", (rollback.at + 1, volume)
        )
        delete_restore(connection, volume)  # the volume is what its snapshot shows
