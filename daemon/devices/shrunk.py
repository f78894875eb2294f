"""Shrunk devices: those that became shorter, recorded whatever length they have later.

How it works      The engine notices a device that is too short, and refuses access beyond the end, for as
                  long as it runs. The catalog records the device for later runs: a file that was extended
                  again has zeros in place of data, and nothing else shows that. Such a device is missing at
                  the next start, until `polyvol device retry`.
Owner and locks   `note` takes `catalog_lock`; the callers of the others hold the device's lock, or start
                  polyvold.
Durability        A device is recorded in the catalog within LOOK_S, and at a stop. After a kill before
                  that, the file is still short, unless it was extended in between.
Errors            Those of the engine and the catalog.
"""

import time
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.daemon.isolation import isolate
from polyvol.mapping.device import length_if_short, short_clause
from polyvol.mapping.records.devices import Device

LOOK_S = 10.0
"""How often the engine is asked while polyvold runs: it examines each device then."""


class ShrunkDevices:
    """The devices that were found short and not retried since."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next_s = 0.0

    def note_if_due(self) -> None:
        """Do the same as `note`, each LOOK_S. One thread calls it."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LOOK_S
            self.note()

    def note(self) -> None:
        """Record in the catalog what the engine has found."""
        found = self._context.engine.stats()["devices"]
        with self._context.catalog_lock:
            names = self._context.device_names()
            for entry in found:
                short = None if entry["fault"] is None else entry["fault"]["short"]
                if short is not None and entry["device"] in names:
                    name = names[entry["device"]]
                    with isolate(self._context, f"remembering that device {name} is short", DEVICE=name):
                        self._remember(entry["device"], name, *short)

    def look(self, device: Device, path: Path) -> None:
        """Record a device that is short at a start, before it is opened."""
        found = length_if_short(device, path, self._context.catalog.uuid)
        if found is not None:
            self._remember(device.id, device.name, found, device.size)

    def clause(self, device: Device) -> str | None:
        """What is wrong with a device that was found short, if it was."""
        found = self._context.catalog.settings.short(device.id)
        return None if found is None else short_clause(found, device.size)

    def forget(self, device: Device) -> None:
        """Clear the record: the device is used again as it is now, or was removed."""
        found = self._context.catalog.settings.short(device.id)
        if found is not None:
            self._context.catalog.settings.set_short(device.id, None)

    def _remember(self, identity: int, name: str, found: int, needed: int) -> None:
        settings = self._context.catalog.settings
        known = settings.short(identity)
        if known is not None and known <= found:
            return
        settings.set_short(identity, found)
        if known is None:
            self._context.events.add("warning", f"device {name}: {short_clause(found, needed)}", DEVICE=name)
