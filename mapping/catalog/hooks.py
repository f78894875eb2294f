"""Hooks in the catalog: of volumes and of schedules, and the thaws that are owed.

How it works      An owed thaw is recorded before its quiesce command starts, so that the next start runs it
                  if this run does not.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

import json
import sqlite3

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.hooks import Hooks


class HookTable:
    """The hooks of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_volume(self, volume: VolumeId) -> Hooks | None:
        """A volume's hooks, if it has any."""
        return _hooks(self._database.rows("SELECT * FROM hook WHERE volume = ?", volume))

    def of_schedule(self, schedule: int) -> Hooks | None:
        """A schedule's hooks, if it has any."""
        return _hooks(self._database.rows("SELECT * FROM hook WHERE schedule = ?", schedule))

    def set_of_volume(self, volume: VolumeId, hooks: Hooks | None) -> None:
        """Give a volume its hooks; None: it has none."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM hook WHERE volume = ?", (volume,))
            if hooks is not None:
                insert_hooks(connection, "volume", volume, hooks)

    def owe_thaw(self, call: object) -> int:
        """Record a thaw that is owed (as JSON): its id."""
        with self._database.transaction() as connection:
            text = json.dumps(call)
            identity = connection.execute("INSERT INTO thaw_owed (call) VALUES (?)", (text,)).lastrowid
        assert identity is not None
        return identity

    def thaws_owed(self) -> dict[int, object]:
        """The thaws that are owed, by id."""
        rows = self._database.rows("SELECT * FROM thaw_owed ORDER BY id")
        return {row["id"]: json.loads(row["call"]) for row in rows}

    def forget_thaw(self, identity: int) -> None:
        """Remove a thaw that is not owed any more."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM thaw_owed WHERE id = ?", (identity,))


def insert_hooks(connection: sqlite3.Connection, owner: str, identity: int | None, hooks: Hooks) -> None:
    """Record hooks, in a transaction that is under way."""
    connection.execute(
        f"INSERT INTO hook ({owner}, quiesce, thaw, timeout_s, shell) VALUES (?, ?, ?, ?, ?)",
        (identity, hooks.quiesce, hooks.thaw, hooks.timeout_s, hooks.shell),
    )


def _hooks(rows: list[sqlite3.Row]) -> Hooks | None:
    if not rows:
        return None
    row = rows[0]
    return Hooks(row["quiesce"], row["thaw"], row["timeout_s"], bool(row["shell"]))
