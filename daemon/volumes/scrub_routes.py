"""The API of scrubs."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.scrubs import ScrubSet, ScrubSettingsView, ScrubStart, ScrubView

ROUTES = [
    Route(
        "POST",
        "/v1/volumes/{volume}/scrub",
        "Start to read and check everything of a volume that has a checksum",
        lambda service, call: service.scrubs.begin(call.path["volume"], call.body.rate),
        ScrubView,
        body=ScrubStart,
        status=201,
    ),
    Route(
        "GET",
        "/v1/volumes/{volume}/scrub",
        "The scrub of a volume that is under way, else the last one",
        lambda service, call: service.scrubs.show(call.path["volume"]),
        ScrubView,
    ),
    Route(
        "DELETE",
        "/v1/volumes/{volume}/scrub",
        "Stop a volume's scrub",
        lambda service, call: service.scrubs.end(call.path["volume"]),
        ScrubView,
    ),
    Route(
        "GET",
        "/v1/scrub",
        "How scrubs are set",
        lambda service, _: ScrubSettingsView(weekly=service.scrubs.weekly),
        ScrubSettingsView,
    ),
    Route(
        "POST",
        "/v1/scrub",
        "Switch weekly scrubs of all volumes on or off",
        lambda service, call: service.set_scrubs(call.body),
        ScrubSettingsView,
        body=ScrubSet,
    ),
]
