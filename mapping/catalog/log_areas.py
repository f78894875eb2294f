"""Log areas and log rules in the catalog.

How it works      The tables of areas are `change_log` and `change_log_extent`, because journals have the
                  areas' numbers, and older versions called an area a change log. A volume has its own rules,
                  and each of its snapshots may have some for the change logs that begin with it; without any,
                  the volume's are in force.
Invariants        The number of an area is never used again (ST1): `next_log` of its volume is greater. LR1:
                  areas and the rules that name their devices are recorded in one transaction.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
Errors            TooManyLogs.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.errors import TooManyLogs
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.volumes import Volume

LOG_NUMBER_MAX = 4095


class LogAreas:
    """The log areas and log rules of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, volume: VolumeId) -> list[LogArea]:
        """A volume's log areas, by number."""
        rows = self._database.rows(
            "SELECT number, device, offset, length FROM change_log"
            " JOIN change_log_extent USING (volume) WHERE volume = ? AND log = number"
            " ORDER BY number, ordinal",
            volume,
        )
        return [
            LogArea(number, tuple(extent_of(row) for row in group))
            for number, group in groupby(rows, key=lambda row: row["number"])
        ]

    def rules(self, volume: VolumeId) -> tuple[LogRule, ...]:
        """A volume's own log rules, in order."""
        rules = read_rules(self._database, "volume = ? AND epoch IS NULL", volume)
        return rules.get((volume, None), ())

    def add(
        self,
        volume: Volume,
        areas: Sequence[Sequence[Extent]],
        rules: Sequence[LogRule],
        made: int | None = None,
    ) -> list[LogArea]:
        """Record more log areas of a volume, and its rules from now on; also record that the device `made`
        for them is ready."""
        added = []
        with self._database.transaction() as connection:
            row = connection.execute("SELECT next_log FROM volume WHERE id = ?", (volume.id,)).fetchone()
            if row["next_log"] + len(areas) > LOG_NUMBER_MAX + 1:
                raise TooManyLogs(name=volume.name)
            for number, extents in enumerate(areas, start=row["next_log"]):
                added.append(LogArea(number, tuple(extents)))
                insert_area(connection, volume.id, added[-1], {})
            connection.execute(
                "UPDATE volume SET next_log = next_log + ? WHERE id = ?", (len(areas), volume.id)
            )
            _replace_rules(connection, volume.id, rules)
            if made is not None:
                connection.execute("UPDATE device SET state = 'ready' WHERE id = ?", (made,))
        return added

    def forget(self, volume: VolumeId, areas: Iterable[LogArea], rules: Sequence[LogRule]) -> None:
        """Remove log areas that nothing refers to, whose numbers are not used again; the volume has these
        rules."""
        with self._database.transaction() as connection:
            _replace_rules(connection, volume, rules)
            for area in areas:
                connection.execute(
                    "DELETE FROM change_log_extent WHERE volume = ? AND log = ?", (volume, area.number)
                )
                connection.execute(
                    "DELETE FROM change_log WHERE volume = ? AND number = ?", (volume, area.number)
                )


def insert_area(
    connection: sqlite3.Connection, volume: VolumeId, area: LogArea, ids: Mapping[int, int]
) -> None:
    """Record a log area, in a transaction that is under way. `ids`: devices by their numbers in its plan."""
    connection.execute("INSERT INTO change_log (volume, number) VALUES (?, ?)", (volume, area.number))
    connection.executemany(
        "INSERT INTO change_log_extent (volume, log, ordinal, device, offset, length)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            (
                volume,
                area.number,
                ordinal,
                ids.get(extent.device, extent.device),
                extent.offset,
                extent.length,
            )
            for ordinal, extent in enumerate(area.extents)
        ),
    )


def insert_rules(
    connection: sqlite3.Connection, volume: VolumeId, epoch: Epoch | None, rules: Iterable[LogRule]
) -> None:
    """Record the log rules of a volume (epoch None) or of its snapshot, in a transaction that is under
    way."""
    for ordinal, rule in enumerate(rules):
        first, last = rule.partitions or (None, None)
        identity = connection.execute(
            "INSERT INTO log_rule"
            " (volume, epoch, ordinal, first_partition, last_partition, processor, others)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (volume, epoch, ordinal, first, last, rule.processor, rule.others),
        ).lastrowid
        connection.executemany(
            "INSERT INTO log_rule_device (rule, ordinal, device) VALUES (?, ?, ?)",
            [(identity, place, device) for place, device in enumerate(rule.devices)],
        )


def read_rules(
    database: Database, condition: str, *values: object
) -> dict[tuple[VolumeId, Epoch | None], tuple[LogRule, ...]]:
    """The log rules of a condition in order, by their volume and the epoch of their snapshot (None: the
    volume's own)."""
    rows = database.rows(
        "SELECT log_rule.*, device FROM log_rule LEFT JOIN log_rule_device ON rule = id"
        f" WHERE {condition} ORDER BY volume, epoch, log_rule.ordinal, log_rule_device.ordinal",
        *values,
    )
    found: dict[tuple[VolumeId, Epoch | None], tuple[LogRule, ...]] = {}
    for _, group in groupby(rows, key=lambda row: row["id"]):
        devices = list(group)
        row = devices[0]
        first, last = row["first_partition"], row["last_partition"]
        rule = LogRule(
            tuple(each["device"] for each in devices if each["device"] is not None),
            None if first is None else (first, last),
            row["processor"],
            bool(row["others"]),
        )
        owner = (VolumeId(row["volume"]), row["epoch"])
        found[owner] = (*found.get(owner, ()), rule)
    return found


def _replace_rules(connection: sqlite3.Connection, volume: VolumeId, rules: Iterable[LogRule]) -> None:
    connection.execute("DELETE FROM log_rule WHERE volume = ? AND epoch IS NULL", (volume,))
    insert_rules(connection, volume, None, rules)


def extent_of(row: sqlite3.Row) -> Extent:
    """The extent in a row of a partition's or a log area's."""
    return Extent(row["device"], row["offset"], row["length"])
