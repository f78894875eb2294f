"""Taking snapshots: the way of every request for one, by whom ever: hooks, then the cut, then the log.

How it works      A volume that another verb has is waited for first, so that no application is made ready in
                  vain. Hooks are run without a lock and end as soon as the cut is made: a command that hangs
                  holds up nobody but who asked for this snapshot. Then snapshots.py takes the cut.
Owner and locks   The volumes' locks, and the group's if it is of one, from the cut's plan to its record.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from polyvol.daemon.context import Context
from polyvol.daemon.hooks import HookRunner
from polyvol.daemon.requests import SnapshotCreate
from polyvol.daemon.snapshots import Snapshots
from polyvol.daemon.views import SnapshotView
from polyvol.mapping.group import Group, Schedule
from polyvol.snapshot.group_errors import UnknownGroup

WHAT = "snapshot create"
QUIESCED_WAIT_S = 5.0
"""How long a volume is waited for while its application waits."""
_log = logging.getLogger("polyvol")


class Taking:
    """Takes snapshots of volumes and of groups."""

    def __init__(self, context: Context, snapshots: Snapshots, hooks: HookRunner) -> None:
        self._context = context
        self._snapshots = snapshots
        self._hooks = hooks

    def take(
        self, request: SnapshotCreate, *, group: Group | None = None, schedule: Schedule | None = None
    ) -> list[SnapshotView]:
        """Take one cut, for a group if so, for a schedule if so."""
        context = self._context
        volumes = [context.find_served(name) for name in request.volumes]
        with context.holding_all(volumes, WHAT):
            pass
        with self._hooks.around(volumes, request.name, group, schedule) as thaw:
            wait_s = None if thaw is None else QUIESCED_WAIT_S
            with (
                nullcontext() if group is None else self._holding(group),
                context.holding_all(volumes, WHAT, wait_s=wait_s) as operation,
            ):
                views = self._snapshots.create(
                    request, group=group, schedule=schedule, thaw=thaw, lent=context.locks.lent(operation)
                )
        for view in views:
            fields = {"VOLUME": view.volume, "SNAPSHOT": view.name}
            if group is not None:
                fields["GROUP"] = group.name
            if schedule is not None:
                fields["SCHEDULE"] = schedule.name
            _log.info("snapshot %s was taken", view.export, extra=fields)
        return views

    @contextmanager
    def _holding(self, group: Group) -> Iterator[None]:
        """Hold the lock of a group that is still there."""
        with self._context.locks.group(group.id, group.name, WHAT):
            if all(each.id != group.id for each in self._context.catalog.groups.all()):
                raise UnknownGroup(name=group.name)
            yield
