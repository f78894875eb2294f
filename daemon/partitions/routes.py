"""The API of partitions, partition snapshots, change logs and places.

All are `slow`: the engine may have to wait for a processor.
"""

from polyvol.daemon.api.page_query import page, page_query
from polyvol.daemon.api.route import Route
from polyvol.daemon.types.logs import ChangeLogDetailView, ChangeLogListView, PlaceView
from polyvol.daemon.types.partitions import (
    PartitionDetailView,
    PartitionListView,
    PartitionSnapshotListView,
)

ROUTES = [
    Route(
        "GET",
        "/v1/volumes/{volume}/partitions",
        "A page of a volume's partitions, as they are now",
        lambda service, call: service.partitions.list_of(call.path["volume"], *page(call)),
        PartitionListView,
        query=page_query("The number of the partition"),
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
            call.path["volume"], call.number_in_path("partition"), *page(call)
        ),
        PartitionSnapshotListView,
        query=page_query("The epoch"),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/snapshots/{snapshot}/partitions",
        "A page of the partition snapshots of a snapshot",
        lambda service, call: service.partitions.of_snapshot(
            call.path["volume"], call.path["snapshot"], *page(call)
        ),
        PartitionSnapshotListView,
        query=page_query("The number of the partition"),
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
            *page(call),
        ),
        ChangeLogListView,
        query=(
            ("snapshot", "string", "Only those that begin with this snapshot"),
            ("partition", "string", "Only those of this partition; then `first` and `count` do not matter"),
            *page_query("The number of the partition"),
        ),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/change-logs/{log}",
        "One change log, with a page of the runs that its blocks are in",
        lambda service, call: service.partition_logs.show(call.path["log"], *page(call)),
        ChangeLogDetailView,
        query=page_query("The number of the run"),
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
