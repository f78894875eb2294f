"""The API of what the process is at. Both are `slow`: readers that hang do not delay them."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.debug import DumpView, ProcessorsView

ROUTES = [
    Route(
        "GET",
        "/v1/debug/processors",
        "What each processor is at, and what waits in it",
        lambda service, _: service.debug.processors(),
        ProcessorsView,
        slow=True,
    ),
    Route(
        "GET",
        "/v1/debug/dump",
        "All that there is to see of the process, for a bug report",
        lambda service, _: service.debug.dump(service.status),
        DumpView,
        slow=True,
    ),
]
