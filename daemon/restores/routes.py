"""The API of restores."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.restores import RestoreAbandoned, RestoreBegin, RestoreCompletion, RestoreView
from polyvol.daemon.types.snapshots import SnapshotView

ROUTES = [
    Route(
        "POST",
        "/v1/restores",
        "Begin a restore, or resume it: the answer names the export to write the backup to",
        lambda service, call: service.restores.begin(call.body),
        RestoreView,
        body=RestoreBegin,
        status=201,
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/restore/completion",
        "All is written and flushed: take the snapshot, and export the volume",
        lambda service, call: service.restores.complete(call.path["volume"], call.body),
        SnapshotView,
        body=RestoreCompletion,
        status=201,
    ),
    Route(
        "DELETE",
        "/v1/volumes/{volume}/restore",
        "Abandon an incomplete restore: the volume goes back to its base, or is deleted if it has none",
        lambda service, call: service.restores.abandon(call.path["volume"]),
        RestoreAbandoned,
    ),
]
