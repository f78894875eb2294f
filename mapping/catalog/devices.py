"""Devices in the catalog.

How it works      A device is 'adding' while it is made and 'removing' while it is removed; the daemon
                  undoes or finishes that at its next start or before. The contents of a device are the
                  extents of partitions and log areas on it. Its generation and runs: generations.py.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import sqlite3
from dataclasses import replace
from itertools import groupby
from uuid import UUID

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.generations import pack_runs, unpack_runs
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.devices import Device, DeviceState


class Devices:
    """The devices of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Device]:
        """All devices, by id."""
        return [_device(row) for row in self._database.rows("SELECT * FROM device ORDER BY id")]

    def find(self, name: str) -> Device | None:
        """The device of this name, if there is one."""
        rows = self._database.rows("SELECT * FROM device WHERE name = ?", name)
        return _device(rows[0]) if rows else None

    def get(self, device: int) -> Device | None:
        """The device of this id, if there is one."""
        rows = self._database.rows("SELECT * FROM device WHERE id = ?", device)
        return _device(rows[0]) if rows else None

    def add(self, device: Device) -> Device:
        """Record a device; its id is given here."""
        with self._database.transaction() as connection:
            return replace(device, id=insert_device(connection, device))

    def set_state(self, device: int, state: DeviceState) -> None:
        """Record the state of a device's add or remove."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET state = ? WHERE id = ?", (state, device))

    def set_path(self, device: int, path: str) -> None:
        """Record a device's new path."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET path = ? WHERE id = ?", (path, device))

    def forget(self, device: int) -> None:
        """Remove a device that nothing uses."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM device WHERE id = ?", (device,))

    def used_extents(self, device: int) -> list[Extent]:
        """The extents of partitions and log areas on a device, by offset."""
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

    def users(self) -> dict[int, list[VolumeId]]:
        """The ids of the volumes that use each device, by device id."""
        rows = self._database.rows(
            "SELECT device, volume FROM partition_extent UNION SELECT device, volume FROM change_log_extent"
            " ORDER BY device, volume"
        )
        return {
            device: [row["volume"] for row in group]
            for device, group in groupby(rows, key=lambda row: int(row["device"]))
        }


def insert_device(connection: sqlite3.Connection, device: Device) -> int:
    """Record a device, in a transaction that is under way: its id."""
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


def _device(row: sqlite3.Row) -> Device:
    values = dict(row)
    values["uuid"] = UUID(values["uuid"])
    values["adopted"] = bool(values["adopted"])
    values["sparse"] = bool(values["sparse"])
    values["direct"] = bool(values["direct"])
    values["made"] = bool(values["made"])
    values["runs"] = unpack_runs(values["runs"])
    return Device(**values)
