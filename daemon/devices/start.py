"""Opening all devices at a start: in parallel, so that one that hangs does not delay the others.

How it works      Each device is inspected, opened, held and checked on a thread. A start waits while devices
                  answer, and PATIENCE_S more. One that has not answered by then is missing; if it is opened
                  later it is closed, and mounts.py finds the device when it answers.
Owner and locks   Nothing else uses devices before the start has ended. `keep` is called by one thread.
Errors            None: each device that cannot be used has a reason.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.devices.files import Checked, keep, open_checked
from polyvol.daemon.devices.shrunk import ShrunkDevices
from polyvol.daemon.isolation import isolate
from polyvol.daemon.workers import answers
from polyvol.mapping.errors import DeviceNotReady
from polyvol.mapping.opening import Identity
from polyvol.mapping.records.devices import Device

PATIENCE_S = 5.0
"""How long a start waits for devices when none has answered."""


def open_all(
    context: Context,
    shrunk: ShrunkDevices,
    devices: Iterable[Device],
    *,
    until: float,
    users: Mapping[Identity, str],
    passed: dict[str, int],
) -> tuple[list[Checked], dict[int, str]]:
    """The devices that are as the catalog says, open and held, and by device id why others are not, as
    clauses. `until` and `users` as in `open_checked`. What is used of `passed` (descriptors, by device UUID)
    is taken out."""
    wanted = {device.id: device for device in devices}
    questions = {
        device.id: partial(
            _open,
            context,
            shrunk,
            device,
            until=until,
            users=users,
            passed=passed.pop(str(device.uuid), None),
        )
        for device in wanted.values()
    }
    found = answers(questions, PATIENCE_S, "polyvol-open", _close)
    checked_devices: list[Checked] = []
    reasons: dict[int, str] = {}
    for number, device in wanted.items():
        answer = found.get(number, f"{context.path(device)} does not answer")
        if isinstance(answer, str):
            reasons[number] = answer
            continue
        with isolate(context, f"opening device {device.name}", partial(reasons.__setitem__, number)):
            keep(context, device, answer.file)
            checked_devices.append(answer)
    return checked_devices, reasons


def _open(
    context: Context,
    shrunk: ShrunkDevices,
    device: Device,
    *,
    until: float,
    users: Mapping[Identity, str],
    passed: int | None,
) -> Checked | str:
    """A device, open and checked, or why it is not, as a clause."""
    reasons: list[str] = []
    with isolate(context, f"opening device {device.name}", reasons.append):
        path = context.path(device)
        shrunk.look(device, path)
        clause = shrunk.clause(device)
        if clause is not None:
            return clause
        try:
            return open_checked(context, device, path, until=until, users=users, passed=passed)
        except DeviceNotReady as error:
            return str(error.facts["reason"])
    return reasons[0]


def _close(late: Checked | str) -> None:
    if not isinstance(late, str):
        late.file.close()
