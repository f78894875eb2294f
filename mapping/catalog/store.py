"""The catalog's verbs: what is read from it and how it changes.

How it works      Each verb is one query or one transaction. Verbs take and return the records of mapping/.
Invariants        ST1 ids of devices and volumes, and numbers of change logs, are never used again; ST2 what
                  is half made or half deleted says so in its `state`, and the daemon settles it at its next
                  start or before; ST3 a volume's next_epoch is greater than the epoch of every snapshot it
                  ever had.
Owner and locks   Any thread may call. What changes something is called under the daemon's locks of what it
                  changes (daemon/locks.py), so that a plan still holds when it is recorded.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from uuid import UUID, uuid4

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.generations import Generations, pack_runs, unpack_runs
from polyvol.mapping.catalog.groups import Groups, insert_group_snapshot
from polyvol.mapping.catalog.growth import Growth
from polyvol.mapping.catalog.removal import Removal
from polyvol.mapping.catalog.restores import Restores, delete_restore
from polyvol.mapping.catalog.rollbacks import Rollbacks, insert_rollbacks
from polyvol.mapping.catalog.schedules import Schedules
from polyvol.mapping.catalog.settings import Settings
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.device import Device, DeviceState
from polyvol.mapping.errors import TooManyLogs
from polyvol.mapping.extent import Extent
from polyvol.mapping.group import GroupSnapshot
from polyvol.mapping.partition import Partition
from polyvol.mapping.records import (
    ChangeLog,
    CloneSource,
    Rollback,
    SnapshotRecord,
    Volume,
    VolumeState,
    WhenFull,
)
from polyvol.mapping.volume import VolumePlan

LOG_NUMBER_MAX = 4095
_VOLUMES = (
    "SELECT volume.*, source, epoch AS source_epoch,"
    " EXISTS (SELECT 1 FROM restore WHERE restore.volume = volume.id) AS restoring"
    " FROM volume LEFT JOIN clone ON clone.volume = volume.id"
)


class Catalog:
    """The catalog of one state directory; `accept_older` as in database.py."""

    def __init__(self, path: Path, *, accept_older: bool = False) -> None:
        self._database = Database(path, accept_older=accept_older)
        self.settings = Settings(self._database)
        self.groups = Groups(self._database)
        self.rollbacks = Rollbacks(self._database)
        self.removal = Removal(self._database)
        self.restores = Restores(self._database)
        self.growth = Growth(self._database)
        self.generations = Generations(self._database)
        self.schedules = Schedules(self._database)
        self.uuid = self._database.uuid

    def close(self) -> None:
        """Close it; idempotent."""
        self._database.close()

    def reading(self) -> AbstractContextManager[None]:
        """One state of the catalog for all that this thread reads within; nothing is changed within it."""
        return self._database.reading()

    def keep_room(self, room: Callable[[], AbstractContextManager[None]]) -> None:
        """Have transactions that give room back run with this around them."""
        self._database.room = room

    # Devices

    def devices(self) -> list[Device]:
        """All devices, by id."""
        return [_device(row) for row in self._database.rows("SELECT * FROM device ORDER BY id")]

    def device(self, name: str) -> Device | None:
        """The device of this name, if there is one."""
        rows = self._database.rows("SELECT * FROM device WHERE name = ?", name)
        return _device(rows[0]) if rows else None

    def add_device(self, device: Device) -> Device:
        """Record a device; its id is given here."""
        with self._database.transaction() as connection:
            return replace(device, id=_insert_device(connection, device))

    def set_device_state(self, device: int, state: DeviceState) -> None:
        """Say how far a device is made or removed."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET state = ? WHERE id = ?", (state, device))

    def set_device_path(self, device: int, path: str) -> None:
        """Say where a device is now."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET path = ? WHERE id = ?", (path, device))

    def forget_device(self, device: int) -> None:
        """Take a device out; nothing may use it."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM device WHERE id = ?", (device,))

    def used_extents(self, device: int) -> list[Extent]:
        """The extents of partitions and change logs on a device, by offset."""
        rows = self._database.rows(
            "SELECT offset, length FROM partition_extent WHERE device = ?1"
            " UNION ALL SELECT offset, length FROM change_log_extent WHERE device = ?1 ORDER BY offset",
            device,
        )
        return [Extent(device, row["offset"], row["length"]) for row in rows]

    def used_bytes(self) -> dict[int, int]:
        """How much of each device extents hold, bytes, by device id."""
        rows = self._database.rows(
            "SELECT device, sum(length) AS used FROM"
            " (SELECT device, length FROM partition_extent"
            " UNION ALL SELECT device, length FROM change_log_extent)"
            " GROUP BY device"
        )
        return {row["device"]: row["used"] for row in rows}

    def users(self) -> dict[int, list[int]]:
        """The ids of the volumes that use each device, by device id."""
        rows = self._database.rows(
            "SELECT device, volume FROM partition_extent UNION SELECT device, volume FROM change_log_extent"
            " ORDER BY device, volume"
        )
        return {
            device: [row["volume"] for row in group]
            for device, group in groupby(rows, key=lambda row: int(row["device"]))
        }

    # Volumes

    def volumes(self) -> list[Volume]:
        """All volumes, by id, those among them that are kept for their clones."""
        return [_volume(row) for row in self._database.rows(f"{_VOLUMES} ORDER BY id")]

    def volume(self, name: str) -> Volume | None:
        """The volume of this name, if there is one."""
        rows = self._database.rows(f"{_VOLUMES} WHERE name = ?", name)
        return _volume(rows[0]) if rows else None

    def partitions(self, volume: int) -> list[Partition]:
        """A volume's partitions, in order."""
        rows = self._database.rows(
            "SELECT number, processor, device, offset, length FROM partition"
            " LEFT JOIN partition_extent ON partition_extent.volume = partition.volume AND partition = number"
            " WHERE partition.volume = ? ORDER BY number, ordinal",
            volume,
        )
        return [
            Partition(number, processor, tuple(_extent(row) for row in group if row["device"] is not None))
            for (number, processor), group in groupby(rows, key=lambda row: (row["number"], row["processor"]))
        ]

    def logs(self, volume: int) -> list[ChangeLog]:
        """A volume's change logs, by number."""
        rows = self._database.rows(
            "SELECT number, is_default, device, offset, length FROM change_log"
            " JOIN change_log_extent USING (volume) WHERE volume = ? AND log = number"
            " ORDER BY number, ordinal",
            volume,
        )
        return [
            ChangeLog(number, bool(default), tuple(_extent(row) for row in group))
            for (number, default), group in groupby(rows, key=lambda row: (row["number"], row["is_default"]))
        ]

    def processor_load(self) -> dict[int, int]:
        """How many partitions each processor owns."""
        rows = self._database.rows("SELECT processor, count(*) AS parts FROM partition GROUP BY processor")
        return {row["processor"]: row["parts"] for row in rows}

    def volume_processors(self, volume: int) -> list[int]:
        """The processors that own partitions of a volume."""
        rows = self._database.rows(
            "SELECT DISTINCT processor FROM partition WHERE volume = ? ORDER BY processor", volume
        )
        return [row["processor"] for row in rows]

    def volume_devices(self, volume: int) -> list[int]:
        """The ids of the devices that a volume's partitions have extents on."""
        rows = self._database.rows(
            "SELECT DISTINCT device FROM partition_extent WHERE volume = ? ORDER BY device", volume
        )
        return [row["device"] for row in rows]

    def create_volume(self, plan: VolumePlan) -> Volume:
        """Record a plan: the volume is 'creating', its new devices are 'adding'."""
        now = wall_ns()
        with self._database.transaction() as connection:
            volume = connection.execute(
                "INSERT INTO volume"
                " (uuid, name, size, partition_size, state, when_full, next_log, created_ns)"
                " VALUES (?, ?, ?, ?, 'creating', ?, ?, ?)",
                (
                    str(uuid4()),
                    plan.name,
                    plan.size,
                    plan.partition_size,
                    plan.when_full,
                    len(plan.logs) + 1,
                    now,
                ),
            ).lastrowid
            assert volume is not None
            ids: dict[int, int] = {}
            for new in plan.new_devices:
                device = Device(
                    0, uuid4(), new.name, new.path, "file", False, new.size, True, volume, "adding", now
                )
                ids[new.id] = _insert_device(connection, device)
            _insert_partitions(connection, volume, plan.partitions, ids)
            for log in plan.logs:
                _insert_log(connection, volume, log, ids)
            if plan.source is not None:
                connection.execute(
                    "INSERT INTO clone (volume, source, epoch) VALUES (?, ?, ?)",
                    (volume, plan.source.volume, plan.source.epoch),
                )
            row = connection.execute(f"{_VOLUMES} WHERE id = ?", (volume,)).fetchone()
        return _volume(row)

    def set_volume_state(self, volume: int, state: VolumeState) -> None:
        """Say how far a volume is made or deleted; 'ready' covers the devices made for it."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET state = ? WHERE id = ?", (state, volume))
            if state == "ready":
                connection.execute("UPDATE device SET state = 'ready' WHERE made_for = ?", (volume,))

    def set_manifests(self, volume: int, partitions: int) -> None:
        """Say that the processors of so many first partitions of a volume have manifests."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET manifests = ? WHERE id = ?", (partitions, volume))

    def set_stopped(self, digests: Mapping[int, str | None]) -> None:
        """Keep or forget the digests of volumes' manifests, by id."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE volume SET stopped = ? WHERE id = ?", [(what, id_) for id_, what in digests.items()]
            )

    def forget_volume(self, volume: int) -> None:
        """Take a volume out, with its snapshots and the devices made for it."""
        with self._database.transaction() as connection:
            for statement in (
                "DELETE FROM restore WHERE volume = ?",
                "DELETE FROM snapshot WHERE volume = ?",
                "DELETE FROM snapshot_dropped WHERE volume = ?",
                "DELETE FROM change_log_extent WHERE volume = ?",
                "DELETE FROM change_log WHERE volume = ?",
                "DELETE FROM partition_extent WHERE volume = ?",
                "DELETE FROM partition WHERE volume = ?",
                "DELETE FROM device WHERE made_for = ?",
                "DELETE FROM volume WHERE id = ?",
            ):
                connection.execute(statement, (volume,))

    def set_when_full(self, volume: int, when_full: WhenFull) -> None:
        """Say what gives way when a volume's change logs are full."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET when_full = ? WHERE id = ?", (when_full, volume))

    def add_log(
        self,
        volume: Volume,
        extents: Sequence[Extent],
        *,
        default: bool = False,
        made: int | None = None,
    ) -> ChangeLog:
        """Record one more change log of a volume, for all that is redirected (`default`) or to be named; with
        it, that the device `made` for it is ready."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT next_log FROM volume WHERE id = ?", (volume.id,)).fetchone()
            if row["next_log"] > LOG_NUMBER_MAX:
                raise TooManyLogs(name=volume.name)
            log = ChangeLog(row["next_log"], default, tuple(extents))
            connection.execute("UPDATE volume SET next_log = next_log + 1 WHERE id = ?", (volume.id,))
            _insert_log(connection, volume.id, log, {})
            if made is not None:
                connection.execute("UPDATE device SET state = 'ready' WHERE id = ?", (made,))
        return log

    def forget_log(self, volume: int, number: int) -> None:
        """Take out a change log that nothing refers to; its number is not used again."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM change_log_extent WHERE volume = ? AND log = ?", (volume, number))
            connection.execute("DELETE FROM change_log WHERE volume = ? AND number = ?", (volume, number))

    # Snapshots

    def snapshots(self, volume: int) -> list[SnapshotRecord]:
        """A volume's snapshots, by epoch."""
        return self._snapshots("WHERE volume = ? AND NOT kept ORDER BY epoch", volume)

    def snapshot_names(self, volume: int) -> set[str]:
        """The names of a volume's snapshots, which is less than to read them all."""
        rows = self._database.rows("SELECT name FROM snapshot WHERE volume = ? AND NOT kept", volume)
        return {row["name"] for row in rows}

    def snapshots_and_kept(self, volume: int) -> list[SnapshotRecord]:
        """A volume's snapshots, by epoch, and those that are deleted and kept for their clones: all that the
        engine has to know."""
        return self._snapshots("WHERE volume = ? ORDER BY epoch", volume)

    def all_snapshots(self) -> list[SnapshotRecord]:
        """All snapshots, by volume and epoch."""
        return self._snapshots("WHERE NOT kept ORDER BY volume, epoch")

    def commit_snapshots(
        self,
        snapshots: Iterable[SnapshotRecord],
        group: GroupSnapshot | None = None,
        rollbacks: Mapping[int, Rollback] | None = None,
    ) -> None:
        """Record the snapshots of one cut, all or none; `group`: they are one of a group. From here on they
        exist, and volumes, by id, are rolled back as `rollbacks` says. A restore to a volume ends with its
        rollback, and with a snapshot that is a copy."""
        with self._database.transaction() as connection:
            insert_rollbacks(connection, rollbacks or {})
            if group is not None:
                insert_group_snapshot(connection, group)
            for snapshot in snapshots:
                identity = connection.execute(
                    "INSERT INTO snapshot"
                    " (uuid, cut, volume, name, epoch, log, instant_ns, stall_ns, durable_ns, origin,"
                    " schedule, size, consistency, hook_trouble)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        str(snapshot.uuid),
                        str(snapshot.cut),
                        snapshot.volume,
                        snapshot.name,
                        snapshot.epoch,
                        snapshot.log,
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
                connection.execute(
                    "UPDATE volume SET next_epoch = max(next_epoch, ?) WHERE id = ?",
                    (snapshot.epoch + 1, snapshot.volume),
                )

    def _snapshots(self, condition: str, *values: object) -> list[SnapshotRecord]:
        stalls: dict[int, list[tuple[int, int]]] = {}
        query = f"SELECT * FROM snapshot_stall WHERE snapshot IN (SELECT id FROM snapshot {condition})"
        for row in self._database.rows(f"{query} ORDER BY snapshot, processor", *values):
            stalls.setdefault(row["snapshot"], []).append((row["processor"], row["stall_ns"]))
        holds: dict[int, list[str]] = {}
        query = f"SELECT * FROM snapshot_hold WHERE snapshot IN (SELECT id FROM snapshot {condition})"
        for row in self._database.rows(f"{query} ORDER BY snapshot, tag", *values):
            holds.setdefault(row["snapshot"], []).append(row["tag"])
        query = f"SELECT * FROM snapshot_copy WHERE snapshot IN (SELECT id FROM snapshot {condition})"
        copies = {row["snapshot"]: UUID(row["uuid"]) for row in self._database.rows(query, *values)}
        rows = self._database.rows(f"SELECT * FROM snapshot {condition}", *values)
        return [
            replace(
                _snapshot(row, tuple(stalls.get(row["id"], ())), tuple(holds.get(row["id"], ()))),
                copy_of=copies.get(row["id"]),
            )
            for row in rows
        ]


def _insert_device(connection: sqlite3.Connection, device: Device) -> int:
    identity = connection.execute(
        "INSERT INTO device (uuid, name, path, kind, adopted, size, sparse, direct, made_for, state,"
        " created_ns, generation, runs, identity, made) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            str(device.uuid),
            device.name,
            device.path,
            device.kind,
            device.adopted,
            device.size,
            device.sparse,
            device.direct,
            device.made_for,
            device.state,
            device.created_ns,
            device.generation,
            pack_runs(*device.runs),
            device.identity,
            device.made,
        ),
    ).lastrowid
    assert identity is not None
    return identity


def _insert_partitions(
    connection: sqlite3.Connection, volume: int, partitions: Sequence[Partition], ids: dict[int, int]
) -> None:
    connection.executemany(
        "INSERT INTO partition (volume, number, processor) VALUES (?, ?, ?)",
        ((volume, partition.number, partition.processor) for partition in partitions),
    )
    connection.executemany(
        "INSERT INTO partition_extent (volume, partition, ordinal, device, offset, length)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            (
                volume,
                partition.number,
                ordinal,
                ids.get(extent.device, extent.device),
                extent.offset,
                extent.length,
            )
            for partition in partitions
            for ordinal, extent in enumerate(partition.extents)
        ),
    )


def _insert_log(connection: sqlite3.Connection, volume: int, log: ChangeLog, ids: dict[int, int]) -> None:
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


def _device(row: sqlite3.Row) -> Device:
    values = dict(row)
    values["uuid"] = UUID(values["uuid"])
    values["adopted"] = bool(values["adopted"])
    values["sparse"] = bool(values["sparse"])
    values["direct"] = bool(values["direct"])
    values["made"] = bool(values["made"])
    values["runs"] = unpack_runs(values["runs"])
    return Device(**values)


def _volume(row: sqlite3.Row) -> Volume:
    values = dict(row)
    values["uuid"] = UUID(values["uuid"])
    values["kept"] = bool(values["kept"])
    values["restoring"] = bool(values["restoring"])
    source, epoch = values.pop("source"), values.pop("source_epoch")
    return Volume(**values, source=None if source is None else CloneSource(source, epoch))


def _extent(row: sqlite3.Row) -> Extent:
    return Extent(row["device"], row["offset"], row["length"])


def _snapshot(
    row: sqlite3.Row, stalls: tuple[tuple[int, int], ...], holds: tuple[str, ...]
) -> SnapshotRecord:
    values = dict(row)
    del values["id"]
    values["uuid"] = UUID(values["uuid"])
    values["cut"] = UUID(values["cut"])
    values["kept"] = bool(values["kept"])
    return SnapshotRecord(**values, stalls=stalls, holds=holds)
