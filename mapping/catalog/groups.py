"""Groups in the catalog: sets of volumes, and their snapshots.

How it works      A group's snapshot is a row that names a cut, written in the transaction that records the
                  cut's snapshots and deleted in the one that deletes them: it exists completely or not at
                  all.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import replace
from uuid import UUID, uuid4

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.groups import Group, GroupSnapshot


class Groups:
    """The groups of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Group]:
        """All groups, by name."""
        members: dict[int, list[VolumeId]] = {}
        for row in self._database.rows("SELECT * FROM volume_group_member ORDER BY volume_group, volume"):
            members.setdefault(row["volume_group"], []).append(row["volume"])
        rows = self._database.rows("SELECT * FROM volume_group ORDER BY name")
        return [
            Group(
                row["id"],
                UUID(row["uuid"]),
                row["name"],
                tuple(members.get(row["id"], ())),
                row["created_ns"],
            )
            for row in rows
        ]

    def find(self, name: str) -> Group | None:
        """The group of this name, if there is one."""
        return next((each for each in self.all() if each.name == name), None)

    def get(self, group: int) -> Group | None:
        """The group of this id, if there is one."""
        return next((each for each in self.all() if each.id == group), None)

    def create(self, name: str, volumes: Iterable[VolumeId]) -> Group:
        """Record a group of these volumes."""
        new = Group(0, uuid4(), name, tuple(sorted(volumes)), wall_ns())
        with self._database.transaction() as connection:
            identity = connection.execute(
                "INSERT INTO volume_group (uuid, name, created_ns) VALUES (?, ?, ?)",
                (str(new.uuid), new.name, new.created_ns),
            ).lastrowid
            assert identity is not None
            connection.executemany(
                "INSERT INTO volume_group_member (volume_group, volume) VALUES (?, ?)",
                [(identity, volume) for volume in new.volumes],
            )
        return replace(new, id=identity)

    def forget(self, group: int) -> None:
        """Remove a group without snapshots, and its schedules."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM volume_group WHERE id = ?", (group,))

    def change(self, group: Group, join: Collection[VolumeId], leave: Collection[VolumeId]) -> Group:
        """Add some volumes to the group, if they are not in it, then remove others; all or nothing. The new
        group; the caller has held `catalog_lock` since it was read."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO volume_group_member (volume_group, volume) VALUES (?, ?)",
                [(group.id, volume) for volume in join],
            )
            connection.executemany(
                "DELETE FROM volume_group_member WHERE volume_group = ? AND volume = ?",
                [(group.id, volume) for volume in leave],
            )
        return replace(group, volumes=tuple(sorted({*group.volumes, *join} - set(leave))))

    def snapshots(self, group: int | None = None) -> list[GroupSnapshot]:
        """The snapshots of one group, or of all, oldest first."""
        condition, values = ("", ()) if group is None else ("WHERE volume_group = ?", (group,))
        rows = self._database.rows(f"SELECT * FROM group_snapshot {condition} ORDER BY id", *values)
        return [GroupSnapshot(UUID(row["cut"]), row["volume_group"], row["name"]) for row in rows]

    def of_cut(self, cut: UUID) -> GroupSnapshot | None:
        """The snapshot of a group that this cut made, if it did."""
        rows = self._database.rows("SELECT * FROM group_snapshot WHERE cut = ?", str(cut))
        return GroupSnapshot(cut, rows[0]["volume_group"], rows[0]["name"]) if rows else None


def insert_group_snapshot(connection: sqlite3.Connection, snapshot: GroupSnapshot) -> None:
    """Record a group's snapshot, in a transaction that records those of its cut."""
    connection.execute(
        "INSERT INTO group_snapshot (cut, volume_group, name) VALUES (?, ?, ?)",
        (str(snapshot.cut), snapshot.group, snapshot.name),
    )
