"""The API of deleting many snapshots at once."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.deletions import DeletionView, SnapshotsDelete

ROUTES = [
    Route(
        "POST",
        "/v1/volumes/{volume}/deletions",
        "Delete snapshots by names and patterns; their space comes back in the background",
        lambda service, call: service.delete_snapshots(call.path["volume"], call.body.names),
        DeletionView,
        body=SnapshotsDelete,
        status=202,
        frees=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/deletions",
        "How far deletions are",
        lambda service, call: service.deletions.show(call.path["volume"]),
        DeletionView,
    ),
]
