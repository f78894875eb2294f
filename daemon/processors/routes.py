"""The API of processors."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.partitions.pages import COUNT, COUNT_MAX
from polyvol.daemon.types.processors import ProcessorDetailView, ProcessorPartitionsView, ProcessorView

ROUTES = [
    Route(
        "GET",
        "/v1/processors",
        "All processors, and what they have done",
        lambda service, _: service.processors.list_all(),
        list[ProcessorView],
    ),
    Route(
        "GET",
        "/v1/processors/{processor}",
        "One processor, with what it has of each volume",
        lambda service, call: service.processors.show(call.number_in_path("processor")),
        ProcessorDetailView,
        slow=True,
    ),
    Route(
        "GET",
        "/v1/processors/{processor}/volumes/{volume}",
        "A page of the partitions of a volume that a processor owns",
        lambda service, call: service.processors.partitions(
            call.number_in_path("processor"),
            call.path["volume"],
            call.number("first", 0),
            call.number("count", COUNT),
        ),
        ProcessorPartitionsView,
        query=(
            ("first", "string", "The partition that the page begins with: 0, or `next` of the page before"),
            ("count", "string", f"How many partitions it has at most, up to {COUNT_MAX} [{COUNT}]"),
        ),
    ),
]
