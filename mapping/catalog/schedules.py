"""Schedules in the catalog.

How it works      A schedule is removed with its volume or group, and its hooks (hooks.py) with it.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import json
import sqlite3
from dataclasses import replace

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.hooks import insert_hooks
from polyvol.mapping.clock import wall_ns
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.hooks import Hooks
from polyvol.mapping.records.schedules import Schedule


class Schedules:
    """The schedules of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Schedule]:
        """All schedules, by name."""
        return [_schedule(row) for row in self._database.rows("SELECT * FROM schedule ORDER BY name")]

    def find(self, name: str) -> Schedule | None:
        """The schedule of this name, if there is one."""
        rows = self._database.rows("SELECT * FROM schedule WHERE name = ?", name)
        return _schedule(rows[0]) if rows else None

    def get(self, schedule: int) -> Schedule | None:
        """The schedule of this id, if there is one."""
        rows = self._database.rows("SELECT * FROM schedule WHERE id = ?", schedule)
        return _schedule(rows[0]) if rows else None

    def add(self, schedule: Schedule, hooks: Hooks | None = None) -> Schedule:
        """Record a schedule, with its hooks; its id is given here."""
        with self._database.transaction() as connection:
            identity = connection.execute(
                "INSERT INTO schedule (name, volume, volume_group, every_s, cron, keep, prefix, paused,"
                " last_ns, error, created_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    schedule.name,
                    schedule.volume,
                    schedule.group,
                    schedule.every_s,
                    schedule.cron,
                    json.dumps(dict(schedule.keep)),
                    schedule.prefix,
                    schedule.paused,
                    schedule.last_ns,
                    schedule.error,
                    schedule.created_ns,
                ),
            ).lastrowid
            assert identity is not None
            if hooks is not None:
                insert_hooks(connection, "schedule", identity, hooks)
        return replace(schedule, id=identity)

    def forget(self, schedule: int) -> None:
        """Remove a schedule and its hooks; its snapshots stay."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM schedule WHERE id = ?", (schedule,))

    def set_paused(self, schedule: int, paused: bool, last_ns: int) -> None:
        """Pause a schedule, or resume it as of `last_ns`: runs missed in the pause are not made up."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE schedule SET paused = ?, last_ns = ? WHERE id = ?",
                (paused, last_ns, schedule),
            )

    def set_ran(self, schedule: int, last_ns: int) -> None:
        """A run succeeded: what was due until then is done."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE schedule SET last_ns = ?, error = NULL WHERE id = ?", (last_ns, schedule)
            )

    def set_failed(self, schedule: int, error: str) -> None:
        """A run failed: it is due still."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE schedule SET error = ? WHERE id = ?", (error, schedule))


def new_schedule(
    name: str,
    *,
    volume: VolumeId | None,
    group: int | None,
    every_s: int | None,
    cron: str | None,
    keep: dict[str, int],
    prefix: str,
    now_ns: int | None = None,
) -> Schedule:
    """A schedule that begins now, for the catalog to record."""
    now = wall_ns() if now_ns is None else now_ns
    return Schedule(0, name, volume, group, every_s, cron, keep, prefix, False, now, None, now)


def _schedule(row: sqlite3.Row) -> Schedule:
    values = dict(row)
    values["group"] = values.pop("volume_group")
    values["keep"] = json.loads(values["keep"])
    values["paused"] = bool(values["paused"])
    return Schedule(**values)
