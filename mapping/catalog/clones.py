"""Clones in the catalog, and the deleted snapshots and volumes that are kept for them.

How it works      A snapshot that a clone was made from is kept when it is deleted: marked, under a name that
                  users cannot give, visible to the engine alone. So is a volume with such snapshots. When the
                  last clone is deleted, the `unneeded` snapshots and volumes are removed.
Invariants        RM1 a snapshot that a clone was made from exists (a foreign key ensures it); RM2 a volume
                  that is kept has such a snapshot, or is about to be removed.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Iterable

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.restores import delete_restore
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.volumes import Volume

_PINNED = "EXISTS (SELECT 1 FROM clone WHERE clone.source = snapshot.volume AND clone.epoch = snapshot.epoch)"


class Clones:
    """What the clones of one catalog were made from."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_snapshot(self) -> dict[tuple[VolumeId, Epoch], list[str]]:
        """The names of the clones that were made from each snapshot, by its volume's id and its epoch."""
        found: dict[tuple[VolumeId, Epoch], list[str]] = {}
        for row in self._database.rows(
            "SELECT source, epoch, name FROM clone JOIN volume ON volume.id = clone.volume ORDER BY name"
        ):
            found.setdefault((row["source"], row["epoch"]), []).append(row["name"])
        return found

    def keep_volume(self, volume: Volume) -> list[Epoch]:
        """Mark a volume with snapshots that clones were made from as deleted: it exists for them alone. The
        epochs of the removed snapshots."""
        with self._database.transaction(frees=True) as connection:
            rows = connection.execute(
                f"SELECT epoch FROM snapshot WHERE volume = ? AND NOT {_PINNED}", (volume.id,)
            ).fetchall()
            delete_restore(connection, volume.id)
            take_out_or_keep(connection, "volume = ?", volume.id)
            for table in ("schedule", "hook", "volume_group_member", "snapshot_dropped"):
                connection.execute(f"DELETE FROM {table} WHERE volume = ?", (volume.id,))
            connection.execute(
                "UPDATE volume SET kept = 1, name = name || '#' || id WHERE id = ?", (volume.id,)
            )
        return [row["epoch"] for row in rows]

    def unneeded_snapshots(self) -> dict[VolumeId, list[Epoch]]:
        """Epochs of snapshots that were kept for clones that are gone, by volume id."""
        found: dict[VolumeId, list[Epoch]] = {}
        for row in self._database.rows(f"SELECT volume, epoch FROM snapshot WHERE kept AND NOT {_PINNED}"):
            found.setdefault(row["volume"], []).append(row["epoch"])
        return found

    def forget_kept(self, volume: VolumeId, epochs: Iterable[Epoch]) -> None:
        """Remove snapshots that were kept for deleted clones."""
        with self._database.transaction(frees=True) as connection:
            connection.executemany(
                "DELETE FROM snapshot WHERE kept AND volume = ? AND epoch = ?",
                [(volume, epoch) for epoch in epochs],
            )

    def unneeded_volumes(self) -> list[VolumeId]:
        """The ids of volumes that were kept for clones that are gone, and have no snapshot left."""
        rows = self._database.rows(
            "SELECT id FROM volume WHERE kept"
            " AND NOT EXISTS (SELECT 1 FROM snapshot WHERE snapshot.volume = volume.id)"
        )
        return [row["id"] for row in rows]


def take_out_or_keep(connection: sqlite3.Connection, which: str, value: str | int) -> None:
    """Remove the snapshots of a condition, or keep them for their clones; within a transaction."""
    connection.execute(
        "DELETE FROM snapshot_hold WHERE snapshot IN"
        f" (SELECT id FROM snapshot WHERE {which} AND NOT kept AND {_PINNED})",
        (value,),
    )
    connection.execute(
        f"UPDATE snapshot SET kept = 1, name = name || '#' || epoch WHERE {which} AND NOT kept AND {_PINNED}",
        (value,),
    )
    connection.execute(f"DELETE FROM snapshot WHERE {which} AND NOT {_PINNED}", (value,))
