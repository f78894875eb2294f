"""Snapshots in the catalog: of one volume each, with their holds; and those that were dropped.

How it works      A snapshot that a clone was made from is kept when it is deleted (clones.py).
Invariants        ST3 a volume's next_epoch is greater than the epoch of every snapshot it ever had.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from polyvol.mapping.catalog.clones import take_out_or_keep
from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.groups import insert_group_snapshot
from polyvol.mapping.catalog.log_areas import insert_rules, read_rules
from polyvol.mapping.catalog.restores import delete_restore, insert_restore
from polyvol.mapping.catalog.rollbacks import insert_rollbacks
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.groups import GroupSnapshot
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.restores import RestoreRecord
from polyvol.mapping.records.rollbacks import Rollback
from polyvol.mapping.records.snapshots import DroppedSnapshot, SnapshotRecord

DROPPED_MAX = 20
"""How many dropped snapshots of a volume are remembered."""


class Snapshots:
    """The snapshots of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, volume: VolumeId) -> list[SnapshotRecord]:
        """A volume's snapshots, by epoch."""
        return self._read("WHERE volume = ? AND NOT kept ORDER BY epoch", volume)

    def find(self, volume: VolumeId, name: str) -> SnapshotRecord | None:
        """The snapshot of this name of a volume, if there is one."""
        found = self._read("WHERE volume = ? AND name = ? AND NOT kept", volume, name)
        return found[0] if found else None

    def at(self, volume: VolumeId, epoch: Epoch) -> SnapshotRecord | None:
        """The snapshot of this epoch of a volume, if there is one; also if it is kept for a clone."""
        found = self._read("WHERE volume = ? AND epoch = ?", volume, epoch)
        return found[0] if found else None

    def names(self, volume: VolumeId) -> set[str]:
        """The names of a volume's snapshots, which is less than to read them all."""
        rows = self._database.rows("SELECT name FROM snapshot WHERE volume = ? AND NOT kept", volume)
        return {row["name"] for row in rows}

    def names_by_epoch(self, volume: VolumeId) -> dict[int, str]:
        """The names of a volume's snapshots, by epoch."""
        rows = self._database.rows(
            "SELECT epoch, name FROM snapshot WHERE volume = ? AND NOT kept ORDER BY epoch", volume
        )
        return {row["epoch"]: row["name"] for row in rows}

    def rules_by_epoch(self, volume: VolumeId) -> dict[int, tuple[LogRule, ...]]:
        """The log rules of a volume's snapshots that have rules of their own, by epoch."""
        found = read_rules(self._database, "volume = ? AND epoch IS NOT NULL", volume)
        return {epoch: rules for (_, epoch), rules in found.items() if epoch is not None}

    def with_kept(self, volume: VolumeId) -> list[SnapshotRecord]:
        """A volume's snapshots, by epoch, and those that are deleted and kept for their clones: all that the
        engine has to know."""
        return self._read("WHERE volume = ? ORDER BY epoch", volume)

    def all(self) -> list[SnapshotRecord]:
        """All snapshots, by volume and epoch."""
        return self._read("WHERE NOT kept ORDER BY volume, epoch")

    def commit(
        self,
        snapshots: Iterable[SnapshotRecord],
        group: GroupSnapshot | None = None,
        rollbacks: Mapping[VolumeId, Rollback] | None = None,
    ) -> None:
        """Record the snapshots of one cut, all or none; `group`: they are one of a group. From here on they
        exist, with what each processor has of their volumes, and volumes, by id, are rolled back as
        `rollbacks` says. A restore to a volume ends with its rollback, and with a snapshot that is a copy."""
        with self._database.transaction() as connection:
            insert_rollbacks(connection, rollbacks or {})
            if group is not None:
                insert_group_snapshot(connection, group)
            for snapshot in snapshots:
                identity = connection.execute(
                    "INSERT INTO snapshot"
                    " (uuid, cut, volume, name, epoch, instant_ns, stall_ns, durable_ns, origin,"
                    " schedule, size, consistency, hook_trouble)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        str(snapshot.uuid),
                        str(snapshot.cut),
                        snapshot.volume,
                        snapshot.name,
                        snapshot.epoch,
                        snapshot.instant_ns,
                        snapshot.stall_ns,
                        snapshot.durable_ns,
                        snapshot.origin,
                        snapshot.schedule,
                        snapshot.size,
                        snapshot.consistency,
                        snapshot.hook_trouble,
                    ),
                ).lastrowid
                connection.executemany(
                    "INSERT INTO snapshot_hold (snapshot, tag) VALUES (?, ?)",
                    [(identity, tag) for tag in snapshot.holds],
                )
                if snapshot.copy_of is not None:
                    connection.execute(
                        "INSERT INTO snapshot_copy (snapshot, uuid) VALUES (?, ?)",
                        (identity, str(snapshot.copy_of)),
                    )
                    delete_restore(connection, snapshot.volume)
                connection.executemany(
                    "INSERT INTO snapshot_stall (snapshot, processor, stall_ns) VALUES (?, ?, ?)",
                    [(identity, processor, stall) for processor, stall in snapshot.stalls],
                )
                connection.executemany(
                    "INSERT INTO snapshot_processor (snapshot, processor, partitions) VALUES (?, ?, ?)",
                    [(identity, processor, partitions) for processor, partitions in snapshot.shares],
                )
                insert_rules(connection, snapshot.volume, snapshot.epoch, snapshot.log_rules)
                connection.execute(
                    "UPDATE volume SET next_epoch = max(next_epoch, ?) WHERE id = ?",
                    (snapshot.epoch + 1, snapshot.volume),
                )

    def hold(self, snapshots: Iterable[UUID], tag: str) -> None:
        """Hold these snapshots by a tag; those that are stay so."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO snapshot_hold (snapshot, tag)"
                " SELECT id, ? FROM snapshot WHERE uuid = ?",
                [(tag, str(snapshot)) for snapshot in snapshots],
            )

    def release(self, snapshots: Iterable[UUID], tag: str) -> None:
        """Hold these snapshots by this tag no more."""
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM snapshot_hold WHERE tag = ?"
                " AND snapshot = (SELECT id FROM snapshot WHERE uuid = ?)",
                [(tag, str(snapshot)) for snapshot in snapshots],
            )

    def forget(self, snapshots: Iterable[UUID]) -> None:
        """Remove snapshots, all or none. From here on they do not exist."""
        with self._database.transaction(frees=True) as connection:
            for snapshot in snapshots:
                take_out_or_keep(connection, "uuid = ?", str(snapshot))

    def forget_cut(self, cut: UUID, unrestored: RestoreRecord | None = None) -> None:
        """Remove every snapshot of a cut, and that of a group, if there are any. `unrestored`: the restore
        that the cut would have completed is incomplete again."""
        with self._database.transaction(frees=True) as connection:
            take_out_or_keep(connection, "cut = ?", str(cut))
            if unrestored is not None:
                delete_restore(connection, unrestored.volume)
                insert_restore(connection, unrestored)
            connection.execute("DELETE FROM group_snapshot WHERE cut = ?", (str(cut),))

    def drop(self, snapshots: Sequence[SnapshotRecord]) -> list[int]:
        """Remove the snapshots of a cut to free space for writes, and record that; the ids of the records."""
        remembered: list[int] = []
        with self._database.transaction(frees=True) as connection:
            for snapshot in snapshots:
                take_out_or_keep(connection, "uuid = ?", str(snapshot.uuid))
                connection.execute("DELETE FROM group_snapshot WHERE cut = ?", (str(snapshot.cut),))
                identity = connection.execute(
                    "INSERT INTO snapshot_dropped (volume, name, instant_ns, dropped_ns) VALUES (?, ?, ?, ?)",
                    (snapshot.volume, snapshot.name, snapshot.instant_ns, wall_ns()),
                ).lastrowid
                assert identity is not None
                remembered.append(identity)
                connection.execute(
                    "DELETE FROM snapshot_dropped WHERE volume = ?1 AND id NOT IN"
                    " (SELECT id FROM snapshot_dropped WHERE volume = ?1 ORDER BY id DESC LIMIT ?2)",
                    (snapshot.volume, DROPPED_MAX),
                )
        return remembered

    def set_freed(self, dropped: int, freed: int) -> None:
        """Say how many bytes dropping a snapshot has freed."""
        with self._database.transaction(frees=True) as connection:
            connection.execute("UPDATE snapshot_dropped SET freed = ? WHERE id = ?", (freed, dropped))

    def dropped(self, volume: VolumeId) -> list[DroppedSnapshot]:
        """The latest snapshots that were dropped to make room for writes, newest first."""
        rows = self._database.rows(
            "SELECT name, instant_ns, dropped_ns, freed FROM snapshot_dropped WHERE volume = ?"
            " ORDER BY id DESC",
            volume,
        )
        return [DroppedSnapshot(**dict(row)) for row in rows]

    def _read(self, condition: str, *values: object) -> list[SnapshotRecord]:
        def rows(table: str, order: str) -> dict[int, list[sqlite3.Row]]:
            query = f"SELECT * FROM {table} WHERE snapshot IN (SELECT id FROM snapshot {condition})"
            found: dict[int, list[sqlite3.Row]] = {}
            for row in self._database.rows(f"{query} ORDER BY snapshot, {order}", *values):
                found.setdefault(row["snapshot"], []).append(row)
            return found

        stalls, shares = rows("snapshot_stall", "processor"), rows("snapshot_processor", "processor")
        holds, copies = rows("snapshot_hold", "tag"), rows("snapshot_copy", "uuid")
        query = f"(volume, epoch) IN (SELECT volume, epoch FROM snapshot {condition})"
        rules = read_rules(self._database, query, *values)
        return [
            replace(
                _snapshot(row),
                stalls=tuple((each["processor"], each["stall_ns"]) for each in stalls.get(row["id"], ())),
                shares=tuple((each["processor"], each["partitions"]) for each in shares.get(row["id"], ())),
                holds=tuple(each["tag"] for each in holds.get(row["id"], ())),
                copy_of=next((UUID(each["uuid"]) for each in copies.get(row["id"], ())), None),
                log_rules=rules.get((row["volume"], row["epoch"]), ()),
            )
            for row in self._database.rows(f"SELECT * FROM snapshot {condition}", *values)
        ]


def _snapshot(row: sqlite3.Row) -> SnapshotRecord:
    """The snapshot of a row of the table `snapshot`, without what is in others."""
    values = dict(row)
    del values["id"]
    values["uuid"] = UUID(values["uuid"])
    values["cut"] = UUID(values["cut"])
    values["kept"] = bool(values["kept"])
    return SnapshotRecord(**values, stalls=())
