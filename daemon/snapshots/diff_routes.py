"""The API of what changed."""

from typing import Literal

from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.snapshots.diff import PAGE_EXTENTS_MAX
from polyvol.daemon.types.diffs import DiffTotalView, DiffView

_UNTIL: tuple[str, Literal["string"], str] = ("until", "string", "The other snapshot; now, if none is named")

ROUTES = [
    Route(
        "GET",
        "/v1/volumes/{volume}/snapshots/{snapshot}/changes",
        "What changed since a snapshot: a page of extents",
        lambda service, call: service.diffs.extents(
            *_named(call), call.number("start", 0), call.number("limit", PAGE_EXTENTS_MAX)
        ),
        DiffView,
        query=(
            _UNTIL,
            ("start", "string", "Where the page begins, in bytes: 0, or `next` of the page before"),
            ("limit", "string", f"The most extents that it holds, up to {PAGE_EXTENTS_MAX}"),
        ),
        slow=True,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/snapshots/{snapshot}/change-total",
        "How much changed since a snapshot",
        lambda service, call: service.diffs.total(*_named(call)),
        DiffTotalView,
        query=(_UNTIL,),
        slow=True,
    ),
]


def _named(call: Call) -> tuple[str, str, str | None]:
    return call.path["volume"], call.path["snapshot"], call.query.get("until")
