"""The API of volumes."""

from typing import TYPE_CHECKING

from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.types.log_areas import LogAdd
from polyvol.daemon.types.volumes import (
    PlanView,
    VolumeCreate,
    VolumeDeleted,
    VolumeGrow,
    VolumeSet,
    VolumeView,
)

if TYPE_CHECKING:
    from polyvol.daemon.service import Service


def _create(service: "Service", call: Call) -> VolumeView | PlanView:
    request: VolumeCreate = call.body
    return service.volumes.plan(request) if request.dry_run else service.create_volume(request)


ROUTES = [
    Route(
        "GET",
        "/v1/volumes",
        "All volumes",
        lambda service, call: service.volumes.list_all(kept=call.flag("kept")),
        list[VolumeView],
        query=(("kept", "boolean", "With those that are deleted and kept for their clones"),),
    ),
    Route(
        "POST",
        "/v1/volumes",
        "Make a volume; with dry_run, only the plan of it",
        _create,
        VolumeView | PlanView,
        body=VolumeCreate,
        status=201,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}",
        "One volume",
        lambda service, call: service.volumes.show(call.path["volume"], partitions=call.flag("partitions")),
        VolumeView,
        query=(("partitions", "boolean", "With each partition's extents and processor"),),
    ),
    Route(
        "PATCH",
        "/v1/volumes/{volume}",
        "Change what can be changed of a volume",
        lambda service, call: service.volumes.change(call.path["volume"], call.body),
        VolumeView,
        body=VolumeSet,
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/logs",
        "Give a volume more log areas, while it is in use",
        lambda service, call: service.volumes.add_log(call.path["volume"], call.body),
        VolumeView,
        body=LogAdd,
        status=201,
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/growth",
        "Make a volume larger, while it is in use",
        lambda service, call: service.volumes.grow(call.path["volume"], call.body),
        VolumeView,
        body=VolumeGrow,
    ),
    Route(
        "DELETE",
        "/v1/volumes/{volume}",
        "Delete a volume that no client is connected to, with its snapshots",
        lambda service, call: service.delete_volume(call.path["volume"]),
        VolumeDeleted,
    ),
]
