"""Change logs in the catalog.

How it works      The number of a change log is never used again (ST1): `next_log` of its volume is greater.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
Errors            TooManyLogs.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import groupby

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.errors import TooManyLogs
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.volumes import Volume

LOG_NUMBER_MAX = 4095


class ChangeLogs:
    """The change logs of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, volume: VolumeId) -> list[ChangeLog]:
        """A volume's change logs, by number."""
        rows = self._database.rows(
            "SELECT number, is_default, device, offset, length FROM change_log"
            " JOIN change_log_extent USING (volume) WHERE volume = ? AND log = number"
            " ORDER BY number, ordinal",
            volume,
        )
        return [
            ChangeLog(number, bool(default), tuple(extent_of(row) for row in group))
            for (number, default), group in groupby(rows, key=lambda row: (row["number"], row["is_default"]))
        ]

    def add(
        self,
        volume: Volume,
        extents: Sequence[Extent],
        *,
        default: bool = False,
        made: int | None = None,
    ) -> ChangeLog:
        """Record one more change log of a volume, for all redirected writes (`default`) or for use by name;
        also record that the device `made` for it is ready."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT next_log FROM volume WHERE id = ?", (volume.id,)).fetchone()
            if row["next_log"] > LOG_NUMBER_MAX:
                raise TooManyLogs(name=volume.name)
            log = ChangeLog(row["next_log"], default, tuple(extents))
            connection.execute("UPDATE volume SET next_log = next_log + 1 WHERE id = ?", (volume.id,))
            insert_log(connection, volume.id, log, {})
            if made is not None:
                connection.execute("UPDATE device SET state = 'ready' WHERE id = ?", (made,))
        return log

    def forget(self, volume: VolumeId, number: int) -> None:
        """Remove a change log that nothing refers to; its number is not used again."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM change_log_extent WHERE volume = ? AND log = ?", (volume, number))
            connection.execute("DELETE FROM change_log WHERE volume = ? AND number = ?", (volume, number))


def insert_log(
    connection: sqlite3.Connection, volume: VolumeId, log: ChangeLog, ids: Mapping[int, int]
) -> None:
    """Record a change log, in a transaction that is under way. `ids`: devices by their numbers in its
    plan."""
    connection.execute(
        "INSERT INTO change_log (volume, number, is_default) VALUES (?, ?, ?)",
        (volume, log.number, log.default),
    )
    connection.executemany(
        "INSERT INTO change_log_extent (volume, log, ordinal, device, offset, length)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            (volume, log.number, ordinal, ids.get(extent.device, extent.device), extent.offset, extent.length)
            for ordinal, extent in enumerate(log.extents)
        ),
    )


def extent_of(row: sqlite3.Row) -> Extent:
    """The extent in a row of a partition's or a change log's."""
    return Extent(row["device"], row["offset"], row["length"])
