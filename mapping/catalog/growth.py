"""Volumes that grow, in the catalog.

How it works      One transaction has the size, the new partitions and extents, and the devices made for them
                  as ready: it is recorded before the engine knows it, so that what hosts write to what is new
                  is never without its place. `undo` takes it back while nobody has seen it.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.partition import Partition
from polyvol.mapping.records import Volume


class Growth:
    """Records the growth of volumes in one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, volume: Volume, size: int, partitions: Sequence[Partition], ids: Mapping[int, int]
    ) -> None:
        """A volume is of this size, with more partitions and extents. `ids` are those of devices made for it,
        by their numbers in the plan; they are ready."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET size = ? WHERE id = ?", (size, volume.id))
            for partition in partitions:
                connection.execute(
                    "INSERT OR IGNORE INTO partition (volume, number, processor) VALUES (?, ?, ?)",
                    (volume.id, partition.number, partition.processor),
                )
                self._add_extents(connection, volume.id, partition, ids)
            connection.executemany(
                "UPDATE device SET state = 'ready' WHERE id = ?", [(device,) for device in ids.values()]
            )

    def undo(self, volume: Volume, before: Iterable[Partition], ids: Mapping[int, int]) -> None:
        """The volume did not grow: it is what it was, with these partitions; the devices are 'adding'."""
        old = list(before)
        last = old[-1]
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET size = ? WHERE id = ?", (volume.size, volume.id))
            connection.execute(
                "DELETE FROM partition_extent WHERE volume = ?1 AND"
                " (partition > ?2 OR partition = ?2 AND ordinal >= ?3)",
                (volume.id, last.number, len(last.extents)),
            )
            connection.execute(
                "DELETE FROM partition WHERE volume = ? AND number > ?", (volume.id, last.number)
            )
            connection.executemany(
                "UPDATE device SET state = 'adding' WHERE id = ?", [(device,) for device in ids.values()]
            )

    @staticmethod
    def _add_extents(
        connection: sqlite3.Connection, volume: int, partition: Partition, ids: Mapping[int, int]
    ) -> None:
        first: int = connection.execute(
            "SELECT count(*) FROM partition_extent WHERE volume = ? AND partition = ?",
            (volume, partition.number),
        ).fetchone()[0]
        connection.executemany(
            "INSERT INTO partition_extent (volume, partition, ordinal, device, offset, length)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    volume,
                    partition.number,
                    first + index,
                    ids.get(extent.device, extent.device),
                    extent.offset,
                    extent.length,
                )
                for index, extent in enumerate(partition.extents)
            ],
        )
