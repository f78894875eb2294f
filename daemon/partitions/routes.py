"""The API of partitions, partition snapshots, change logs and places.

All are `slow`: the engine may have to wait for a processor.
"""

from typing import Literal

from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.partitions.pages import COUNT, COUNT_MAX
from polyvol.daemon.types.logs import ChangeLogDetailView, ChangeLogListView, PlaceView
from polyvol.daemon.types.partitions import (
    PartitionDetailView,
    PartitionListView,
    PartitionSnapshotListView,
)

_Parameter = tuple[str, Literal["string"], str]
_COUNT: _Parameter = ("count", "string", f"How much a page has, up to {COUNT_MAX} [{COUNT}]")


def _first(what: str) -> tuple[_Parameter, _Parameter]:
    text = f"The number of the {what} that the page begins with: 0, or `next` of the page before"
    return ("first", "string", text), _COUNT


ROUTES = [
    Route(
        "GET",
        "/v1/volumes/{volume}/partitions",
        "A page of a volume's partitions, as they are now",
        lambda service, call: service.partitions.list_of(call.path["volume"], *_page(call)),
        PartitionListView,
        query=_first("partition"),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/partitions/{partition}",
        "One partition, with its extents and its change logs",
        lambda service, call: service.partitions.show(call.path["volume"], call.number_in_path("partition")),
        PartitionDetailView,
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/partitions/{partition}/snapshots",
        "A page of the snapshots of one partition",
        lambda service, call: service.partitions.snapshots_of(
            call.path["volume"], call.number_in_path("partition"), *_page(call)
        ),
        PartitionSnapshotListView,
        query=(("first", "string", "The epoch that the page begins with: 0, or `next` of another"), _COUNT),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/snapshots/{snapshot}/partitions",
        "A page of the partition snapshots of a snapshot",
        lambda service, call: service.partitions.of_snapshot(
            call.path["volume"], call.path["snapshot"], *_page(call)
        ),
        PartitionSnapshotListView,
        query=_first("partition"),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/change-logs",
        "A page of a volume's change logs",
        lambda service, call: service.partition_logs.list_of(
            call.path["volume"],
            call.query.get("snapshot"),
            call.number("partition", 0) if "partition" in call.query else None,
            *_page(call),
        ),
        ChangeLogListView,
        query=(
            ("snapshot", "string", "Only those that begin with this snapshot"),
            ("partition", "string", "Only those of this partition; then `first` and `count` do not matter"),
            *_first("partition"),
        ),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/change-logs/{log}",
        "One change log, with a page of the runs that its blocks are in",
        lambda service, call: service.partition_logs.show(call.path["log"], *_page(call)),
        ChangeLogDetailView,
        query=_first("run"),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/place",
        "Where a byte of a volume, or of its snapshot, is",
        lambda service, call: service.places.find(
            call.path["volume"], call.number("offset", 0), call.query.get("snapshot")
        ),
        PlaceView,
        query=(
            ("offset", "string", "Of the byte, from the start of the volume [0]"),
            ("snapshot", "string", "The snapshot; the volume as it is now, if none is named"),
        ),
        slow=True,
    ),
]


def _page(call: Call) -> tuple[int, int]:
    return call.number("first", 0), call.number("count", COUNT)
