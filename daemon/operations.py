"""What status shows of the daemon itself, and of the verbs under way (operations)."""

import os
from collections.abc import Sequence

from polyvol.daemon.context import Context
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.status import DaemonView, OperationView
from polyvol.daemon.version import build


def daemon_view(
    context: Context,
    *,
    version: str,
    frontend: str,
    nbd: Sequence[str],
    started_ns: int,
    uptime_ns: int,
) -> DaemonView:
    """The daemon."""
    return DaemonView(
        pid=os.getpid(),
        version=version,
        build=build(),
        state_dir=str(context.state_dir),
        frontend=frontend,
        nbd=list(nbd),
        processors=context.processors,
        started=iso(started_ns),
        uptime_s=round(uptime_ns / 1e9, 3),
        connections=sum(export["connections"] for export in context.exports()),
    )


def operation_views(context: Context) -> list[OperationView]:
    """What holds volumes and devices now, the oldest first."""
    locks, now = context.locks, context.clock()
    views = []
    for operation in locks.operations():
        seconds = locks.seconds(operation)
        views.append(
            OperationView(
                what=operation.what,
                volumes=operation.names if operation.noun == "volume" else [],
                devices=operation.names if operation.noun == "device" else [],
                since=iso(max(0, now - int(seconds * 1e9))),
                seconds=round(seconds, 1),
                waiting=locks.waiting(operation),
            )
        )
    return views
