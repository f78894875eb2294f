"""The API of snapshots."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.groups import RollbackStart, RollbackView
from polyvol.daemon.types.snapshots import SnapshotCreate, SnapshotDeleted, SnapshotView
from polyvol.daemon.types.volumes import CloneCreate, VolumeView

ROUTES = [
    Route(
        "GET",
        "/v1/snapshots",
        "All snapshots",
        lambda service, call: service.snapshots.list_all(
            call.query.get("volume"), parts=call.flag("partitions")
        ),
        list[SnapshotView],
        query=(
            ("volume", "string", "Only those of this volume"),
            ("partitions", "boolean", "With their partition snapshots counted"),
        ),
    ),
    Route(
        "POST",
        "/v1/snapshots",
        "Take one snapshot of each volume named, all at one instant",
        lambda service, call: service.create_snapshots(call.body),
        list[SnapshotView],
        body=SnapshotCreate,
        status=201,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/snapshots/{snapshot}",
        "One snapshot",
        lambda service, call: service.snapshots.show(
            call.path["volume"], call.path["snapshot"], partitions=call.flag("partitions")
        ),
        SnapshotView,
        query=(("partitions", "boolean", "With the partition snapshots that it is made of"),),
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/snapshots/{snapshot}/rollback",
        "Have a volume be what its snapshot shows",
        lambda service, call: service.rollbacks.roll_back(
            call.path["volume"], call.path["snapshot"], call.body
        ),
        RollbackView,
        body=RollbackStart,
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/snapshots/{snapshot}/clones",
        "Make a volume from a snapshot",
        lambda service, call: service.clone_volume(call.path["volume"], call.path["snapshot"], call.body),
        VolumeView,
        body=CloneCreate,
        status=201,
    ),
    Route(
        "DELETE",
        "/v1/volumes/{volume}/snapshots/{snapshot}",
        "Delete a snapshot that no client is connected to",
        lambda service, call: service.delete_snapshot(call.path["volume"], call.path["snapshot"]),
        SnapshotDeleted,
    ),
]
