"""The API of clients."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.clients import ClientView

ROUTES = [
    Route(
        "GET",
        "/v1/clients",
        "The connections of NBD clients",
        lambda service, call: service.clients.list_all(call.query.get("export")),
        list[ClientView],
        query=(("export", "string", "Only those to this export: VOLUME or VOLUME@SNAPSHOT"),),
    ),
    Route(
        "DELETE",
        "/v1/clients/{client}",
        "Disconnect a client; it can connect again",
        lambda service, call: service.clients.disconnect(call.path["client"]),
        ClientView,
    ),
]
