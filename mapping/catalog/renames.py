"""Renames in the catalog: each is one transaction, so a kill leaves the old name or the new one.

How it works      The catalog refers to objects by id or UUID, with one exception: a snapshot has the name of
                  the schedule that made it. Renaming a schedule changes these too.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
Errors            CatalogConflict if the name is taken.
"""

from collections.abc import Iterable
from uuid import UUID

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.records.schedules import Schedule

_CUTS = (
    "SELECT cut FROM snapshot WHERE schedule = ?1 AND volume = ?3"
    " UNION SELECT cut FROM group_snapshot WHERE volume_group = ?4"
)
"""The cuts that a schedule, or an earlier one, of name ?1 has made of volume ?3 or group ?4."""


class Renames:
    """The renames of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def volume(self, volume: int, name: str) -> None:
        """Give a volume another name."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET name = ? WHERE id = ?", (name, volume))

    def device(self, device: int, name: str) -> None:
        """Give a device another name."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET name = ? WHERE id = ?", (name, device))

    def snapshots(self, snapshots: Iterable[UUID], name: str, cut: UUID) -> None:
        """Give another name to these snapshots of a cut, and to the group's snapshot that it made, if it did;
        all or none."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE snapshot SET name = ? WHERE uuid = ?", [(name, str(uuid)) for uuid in snapshots]
            )
            connection.execute("UPDATE group_snapshot SET name = ? WHERE cut = ?", (name, str(cut)))

    def group(self, group: int, name: str) -> None:
        """Give a group another name."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume_group SET name = ? WHERE id = ?", (name, group))

    def schedule(self, schedule: Schedule, name: str) -> None:
        """Give a schedule another name, and have its snapshots say that it made them."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE schedule SET name = ? WHERE id = ?", (name, schedule.id))
            connection.execute(
                f"UPDATE snapshot SET schedule = ?2 WHERE schedule = ?1 AND cut IN ({_CUTS})",
                (schedule.name, name, schedule.volume, schedule.group),
            )

    def made_by(self, schedule: Schedule, name: str) -> bool:
        """Whether a schedule of this name has made snapshots of what `schedule` is for."""
        return bool(
            self._database.rows(
                f"SELECT 1 FROM snapshot WHERE NOT kept AND schedule = ?1 AND cut IN ({_CUTS}) LIMIT 1",
                name,
                None,
                schedule.volume,
                schedule.group,
            )
        )
