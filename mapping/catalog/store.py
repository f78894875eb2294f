"""The catalog of one state directory: its tables, and the operations on all of them.

How it works      Each noun has a file of its own with its tables: devices.py, volumes.py, log_areas.py,
                  snapshots.py, clones.py, groups.py, schedules.py, hooks.py, restores.py, rollbacks.py,
                  scrubs.py, generations.py, settings.py. Each of their verbs is one query or one
                  transaction, and takes and returns the records of mapping/records/. A verb that changes
                  tables of other nouns calls their functions for a transaction that is under way.
Invariants        ST1 ids of devices and volumes, and numbers of log areas, are never used again; ST2 a
                  partly made or deleted object has that in its `state`, and the daemon settles it at its next
                  start or before.
Owner and locks   Any thread may call. A verb that changes an object is called under the daemon's locks of
                  that object (daemon/locks.py), so that a plan is still valid when it is recorded.
Durability        When a verb returns, its change survives power loss.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from polyvol.mapping.catalog.clones import Clones
from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.devices import Devices
from polyvol.mapping.catalog.generations import Generations
from polyvol.mapping.catalog.groups import Groups
from polyvol.mapping.catalog.hooks import HookTable
from polyvol.mapping.catalog.log_areas import LogAreas
from polyvol.mapping.catalog.renames import Renames
from polyvol.mapping.catalog.restores import Restores
from polyvol.mapping.catalog.rollbacks import Rollbacks
from polyvol.mapping.catalog.schedules import Schedules
from polyvol.mapping.catalog.scrubs import Scrubs
from polyvol.mapping.catalog.settings import Settings
from polyvol.mapping.catalog.snapshots import Snapshots
from polyvol.mapping.catalog.volumes import Volumes


class Catalog:
    """The catalog of one state directory; `accept_older` as in database.py."""

    def __init__(self, path: Path, *, accept_older: bool = False) -> None:
        self._database = Database(path, accept_older=accept_older)
        self.devices = Devices(self._database)
        self.volumes = Volumes(self._database)
        self.log_areas = LogAreas(self._database)
        self.snapshots = Snapshots(self._database)
        self.clones = Clones(self._database)
        self.groups = Groups(self._database)
        self.renames = Renames(self._database)
        self.schedules = Schedules(self._database)
        self.hooks = HookTable(self._database)
        self.restores = Restores(self._database)
        self.rollbacks = Rollbacks(self._database)
        self.scrubs = Scrubs(self._database)
        self.generations = Generations(self._database)
        self.settings = Settings(self._database)
        self.uuid = self._database.uuid

    def close(self) -> None:
        """Close it; idempotent."""
        self._database.close()

    def reading(self) -> AbstractContextManager[None]:
        """One state of the catalog for all that this thread reads within; nothing is changed within it."""
        return self._database.reading()

    def whole(self) -> bytes:
        """A copy of it as it is now, as one file."""
        return self._database.whole()

    def keep_room(self, room: Callable[[], AbstractContextManager[None]]) -> None:
        """Set the context that is entered around transactions that free space."""
        self._database.room = room
