"""Operations: the verbs under way, as status shows them."""

from polyvol.daemon.context import Context
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.status import OperationView


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
