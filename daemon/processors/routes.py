"""The API of processors."""

from polyvol.daemon.api.page_query import page, page_query
from polyvol.daemon.api.route import Route
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
            *page(call),
        ),
        ProcessorPartitionsView,
        query=page_query("The number of the partition"),
    ),
]
