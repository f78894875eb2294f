"""Settings: single facts in the catalog: how the last run ended, and which devices were found
short.

Owner and locks   Any thread may call.
Durability        When a verb returns, its change survives power loss.
"""

import json

from polyvol.mapping.catalog.database import Database


class Settings:
    """Names and values."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> str | None:
        """The value of a name, if it has one."""
        rows = self._database.rows("SELECT value FROM setting WHERE name = ?", name)
        return str(rows[0]["value"]) if rows else None

    def set(self, name: str, value: str) -> None:
        """Give a name its value."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)", (name, value))

    def begin_run(self, boot_id: str) -> bool:
        """A run of the daemon begins, which has not ended cleanly until it says so. Returns whether nothing
        that an earlier one wrote is in doubt: it ended cleanly, or the machine was restarted since, so
        that what is on its devices now is all that there will be. A text that cannot be read leaves it in
        doubt."""
        text = self.get("run")
        try:
            last = {"boot_id": "", "clean": True} if text is None else json.loads(text)
            clean = bool(last["clean"]) or last["boot_id"] != boot_id
        except (ValueError, KeyError, TypeError):
            clean = False
        self._boot_id = boot_id
        self._set_run(clean=False)
        return clean

    def end_run(self) -> None:
        """The run ends, and all that it wrote is durable."""
        self._set_run(clean=True)

    def short(self, device: int) -> int | None:
        """How long a device was found to be, if that is shorter than it must be (bytes)."""
        text = self.get(f"short {device}")
        return None if text is None else int(text)

    def set_short(self, device: int, length: int | None) -> None:
        """Record that a device was found short; None: it is used again."""
        if length is not None:
            self.set(f"short {device}", str(length))
            return
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM setting WHERE name = ?", (f"short {device}",))

    def in_future(self, now_ns: int) -> dict[str, int]:
        """How much there is whose time is later than now (ns since 1970), by what it is; those that are none
        are not in it."""
        rows = self._database.rows(
            "SELECT 'snapshot' AS what, count(*) AS number FROM snapshot WHERE NOT kept AND instant_ns > ?1"
            " UNION ALL SELECT 'volume', count(*) FROM volume WHERE NOT kept AND created_ns > ?1"
            " UNION ALL SELECT 'scrub', count(*) FROM scrub WHERE ended_ns > ?1"
            " UNION ALL SELECT 'schedule', count(*) FROM schedule WHERE last_ns > ?1",
            now_ns,
        )
        return {row["what"]: row["number"] for row in rows if row["number"]}

    def _set_run(self, *, clean: bool) -> None:
        self.set("run", json.dumps({"boot_id": self._boot_id, "clean": clean}))
