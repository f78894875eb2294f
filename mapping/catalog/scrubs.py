"""Scrubs in the catalog: the last one of each volume that ended.

Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.ids import VolumeId


class Scrubs:
    """The scrubs of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last(self, volume: VolumeId) -> tuple[int, str] | None:
        """When the last scrub of a volume ended (ns since 1970), and its result as JSON; None if there was
        none."""
        rows = self._database.rows("SELECT ended_ns, result FROM scrub WHERE volume = ?", volume)
        return (rows[0]["ended_ns"], rows[0]["result"]) if rows else None

    def keep(self, volume: VolumeId, ended_ns: int, result: str) -> None:
        """Record a scrub that has ended; nothing happens if the volume is gone."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO scrub (volume, ended_ns, result)"
                " SELECT id, ?, ? FROM volume WHERE id = ?",
                (ended_ns, result, volume),
            )
