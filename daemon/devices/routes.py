"""The API of devices."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.devices import DeviceAdd, DeviceRetry, DeviceView

ROUTES = [
    Route(
        "GET", "/v1/devices", "All devices", lambda service, _: service.devices.list_all(), list[DeviceView]
    ),
    Route(
        "POST",
        "/v1/devices",
        "Add a device, or bring back one that was missing",
        lambda service, call: service.add_device(call.body),
        DeviceView,
        body=DeviceAdd,
        status=201,
    ),
    Route(
        "GET",
        "/v1/devices/{device}",
        "One device",
        lambda service, call: service.devices.show(call.path["device"]),
        DeviceView,
    ),
    Route(
        "POST",
        "/v1/devices/{device}/retry",
        "Reopen a device that was missing or faulty, while it is in use",
        lambda service, call: service.retry_device(call.path["device"], call.body),
        DeviceView,
        body=DeviceRetry,
    ),
    Route(
        "DELETE",
        "/v1/devices/{device}",
        "Remove a device that no volume uses: what it was",
        lambda service, call: service.remove_device(call.path["device"]),
        DeviceView,
    ),
]
