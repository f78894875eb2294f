"""Volumes in the catalog: a volume, its partitions and their extents.

How it works      A volume is 'creating' while it is made and 'deleting' while it is removed; the daemon
                  finishes or undoes that at its next start or before. Growth is recorded in one transaction:
                  the size, the new partitions and extents, and the devices made for them as ready. It is
                  recorded before the engine grows, so that data that hosts write there always has a recorded
                  place; `undo_growth` reverts it while the new size is not visible.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from uuid import UUID, uuid4

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.devices import insert_device
from polyvol.mapping.catalog.log_areas import extent_of, insert_area, insert_rules
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.partition import PARTITIONS_MAX, Partition
from polyvol.mapping.plans.volumes import VolumePlan
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import CloneSource, Volume, VolumeState

_VOLUMES = (
    "SELECT volume.*, source, epoch AS source_epoch,"
    " EXISTS (SELECT 1 FROM restore WHERE restore.volume = volume.id) AS restoring"
    " FROM volume LEFT JOIN clone ON clone.volume = volume.id"
)


class Volumes:
    """The volumes of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Volume]:
        """All volumes, by id, those among them that are kept for their clones."""
        return [_volume(row) for row in self._database.rows(f"{_VOLUMES} ORDER BY id")]

    def find(self, name: str) -> Volume | None:
        """The volume of this name, if there is one."""
        rows = self._database.rows(f"{_VOLUMES} WHERE name = ?", name)
        return _volume(rows[0]) if rows else None

    def get(self, volume: VolumeId) -> Volume | None:
        """The volume of this id, if there is one."""
        rows = self._database.rows(f"{_VOLUMES} WHERE id = ?", volume)
        return _volume(rows[0]) if rows else None

    def partitions(self, volume: VolumeId, first: int = 0, count: int = PARTITIONS_MAX) -> list[Partition]:
        """A volume's partitions, in order: those from number `first` on, at most so many."""
        rows = self._database.rows(
            "SELECT number, processor, device, offset, length FROM partition"
            " LEFT JOIN partition_extent ON partition_extent.volume = partition.volume AND partition = number"
            " WHERE partition.volume = ? AND number >= ? AND number < ? ORDER BY number, ordinal",
            volume,
            first,
            first + count,
        )
        return [
            Partition(number, processor, tuple(extent_of(row) for row in group if row["device"] is not None))
            for (number, processor), group in groupby(rows, key=lambda row: (row["number"], row["processor"]))
        ]

    def processors(self, volume: VolumeId) -> list[int]:
        """The processors that own partitions of a volume."""
        rows = self._database.rows(
            "SELECT DISTINCT processor FROM partition WHERE volume = ? ORDER BY processor", volume
        )
        return [row["processor"] for row in rows]

    def of_processor(self, processor: int) -> dict[VolumeId, tuple[int, int, int]]:
        """How many partitions of each volume a processor owns, and the lowest and the highest number of them,
        by the volume's id."""
        rows = self._database.rows(
            "SELECT volume, count(*) AS parts, min(number) AS first, max(number) AS last FROM partition"
            " WHERE processor = ? GROUP BY volume ORDER BY volume",
            processor,
        )
        return {row["volume"]: (row["parts"], row["first"], row["last"]) for row in rows}

    def numbers_of_processor(self, volume: VolumeId, processor: int, first: int, count: int) -> list[int]:
        """The partitions of a volume that a processor owns, from number `first` on, at most so many."""
        rows = self._database.rows(
            "SELECT number FROM partition WHERE volume = ? AND processor = ? AND number >= ?"
            " ORDER BY number LIMIT ?",
            volume,
            processor,
            first,
            count,
        )
        return [row["number"] for row in rows]

    def devices(self, volume: VolumeId) -> list[int]:
        """The ids of the devices that a volume's partitions have extents on."""
        rows = self._database.rows(
            "SELECT DISTINCT device FROM partition_extent WHERE volume = ? ORDER BY device", volume
        )
        return [row["device"] for row in rows]

    def processor_load(self) -> dict[int, int]:
        """How many partitions each processor owns."""
        rows = self._database.rows("SELECT processor, count(*) AS parts FROM partition GROUP BY processor")
        return {row["processor"]: row["parts"] for row in rows}

    def create(self, plan: VolumePlan) -> Volume:
        """Record a plan: the volume is 'creating', its new devices are 'adding'."""
        now = wall_ns()
        with self._database.transaction() as connection:
            number = connection.execute(
                "INSERT INTO volume"
                " (uuid, name, size, partition_size, state, when_full, next_log, created_ns, log_limit)"
                " VALUES (?, ?, ?, ?, 'creating', ?, ?, ?, ?)",
                (
                    str(uuid4()),
                    plan.name,
                    plan.size,
                    plan.partition_size,
                    plan.when_full,
                    len(plan.logs) + 1,
                    now,
                    plan.log_limit,
                ),
            ).lastrowid
            assert number is not None
            volume = VolumeId(number)
            ids: dict[int, int] = {}
            for new in plan.new_devices:
                device = Device(
                    0, uuid4(), new.name, new.path, "file", False, new.size, True, volume, "adding", now
                )
                ids[new.id] = insert_device(connection, device)
            _insert_partitions(connection, volume, plan.partitions, ids)
            for log in plan.logs:
                insert_area(connection, volume, log, ids)
            insert_rules(connection, volume, None, plan.log_rules)
            if plan.source is not None:
                connection.execute(
                    "INSERT INTO clone (volume, source, epoch) VALUES (?, ?, ?)",
                    (volume, plan.source.volume, plan.source.epoch),
                )
            row = connection.execute(f"{_VOLUMES} WHERE id = ?", (volume,)).fetchone()
        return _volume(row)

    def set_state(self, volume: VolumeId, state: VolumeState) -> None:
        """Record the state of a volume; 'ready' includes the devices made for it."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET state = ? WHERE id = ?", (state, volume))
            if state == "ready":
                connection.execute("UPDATE device SET state = 'ready' WHERE made_for = ?", (volume,))

    def set_manifests(self, volume: VolumeId, partitions: int) -> None:
        """Say that the processors of so many first partitions of a volume have manifests."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE volume SET manifests = ? WHERE id = ?", (partitions, volume))

    def set_stopped(self, digests: Mapping[VolumeId, str | None]) -> None:
        """Keep or forget the digests of volumes' manifests, by id."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE volume SET stopped = ? WHERE id = ?", [(what, id_) for id_, what in digests.items()]
            )

    def set_policies(self, volume: Volume) -> None:
        """Record what a volume does when its change logs are full, how fast its blocks are relocated, and up
        to what size its log areas grow."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE volume SET when_full = ?, relocation_rate = ?, log_limit = ? WHERE id = ?",
                (volume.when_full, volume.relocation_rate, volume.log_limit, volume.id),
            )

    def record_growth(
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
                _add_extents(connection, volume.id, partition, ids)
            connection.executemany(
                "UPDATE device SET state = 'ready' WHERE id = ?", [(device,) for device in ids.values()]
            )

    def undo_growth(self, volume: Volume, before: Iterable[Partition], ids: Mapping[int, int]) -> None:
        """Revert a growth: the volume has its old size and these partitions; the devices are 'adding'."""
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

    def forget(self, volume: VolumeId) -> None:
        """Remove a volume, its snapshots and the devices made for it."""
        with self._database.transaction() as connection:
            for statement in (
                "DELETE FROM restore WHERE volume = ?",
                "DELETE FROM snapshot WHERE volume = ?",
                "DELETE FROM snapshot_dropped WHERE volume = ?",
                "DELETE FROM log_rule WHERE volume = ?",
                "DELETE FROM change_log_extent WHERE volume = ?",
                "DELETE FROM change_log WHERE volume = ?",
                "DELETE FROM partition_extent WHERE volume = ?",
                "DELETE FROM partition WHERE volume = ?",
                "DELETE FROM device WHERE made_for = ?",
                "DELETE FROM volume WHERE id = ?",
            ):
                connection.execute(statement, (volume,))


def _insert_partitions(
    connection: sqlite3.Connection, volume: VolumeId, partitions: Sequence[Partition], ids: dict[int, int]
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


def _add_extents(
    connection: sqlite3.Connection, volume: VolumeId, partition: Partition, ids: Mapping[int, int]
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


def _volume(row: sqlite3.Row) -> Volume:
    values = dict(row)
    values["uuid"] = UUID(values["uuid"])
    values["kept"] = bool(values["kept"])
    values["restoring"] = bool(values["restoring"])
    source, epoch = values.pop("source"), values.pop("source_epoch")
    return Volume(**values, source=None if source is None else CloneSource(source, epoch))
