"""The API of renames."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.types.renames import Rename, Renamed

if TYPE_CHECKING:
    from polyvol.daemon.service import Service


def _route(path: str, summary: str, call: "Callable[[Service, Call], Renamed]") -> Route:
    return Route("POST", f"/v1/{path}/rename", summary, call, Renamed, body=Rename)


ROUTES = [
    _route(
        "volumes/{volume}",
        "Rename a volume that no client is connected to",
        lambda service, call: service.renames.volume(call.path["volume"], call.body),
    ),
    _route(
        "volumes/{volume}/snapshots/{snapshot}",
        "Rename a snapshot that no client is connected to",
        lambda service, call: service.renames.snapshot(call.path["volume"], call.path["snapshot"], call.body),
    ),
    _route(
        "groups/{group}/snapshots/{snapshot}",
        "Rename a snapshot of a group, with those that it is made of",
        lambda service, call: service.renames.group_snapshot(
            call.path["group"], call.path["snapshot"], call.body
        ),
    ),
    _route(
        "devices/{device}",
        "Rename a device",
        lambda service, call: service.renames.device(call.path["device"], call.body),
    ),
    _route(
        "groups/{group}",
        "Rename a group",
        lambda service, call: service.renames.group(call.path["group"], call.body),
    ),
    _route(
        "schedules/{schedule}",
        "Rename a schedule; its snapshots keep their names",
        lambda service, call: service.renames.schedule(call.path["schedule"], call.body),
    ),
]
