"""Claims: no two devices have bytes in common, whatever paths they have.

How it works      A verb that will use a file or disk claims its path and the file or disk there, then checks
                  whether that is already a device, or a part of one (`refuse_shared`).
Invariants        CL1 one verb at a time has a claim, until it ends.
Owner and locks   `_taking` is changed under `catalog_lock`. Inspecting a file or disk may block without
                  limit, and is done without it.
Errors            DiskInUse, DevicePathInUse.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.daemon.devices.files import identities
from polyvol.mapping import occupied
from polyvol.mapping.device import Found, is_own, trouble_with
from polyvol.mapping.errors import DevicePathInUse, DiskInUse, ForeignLabel
from polyvol.mapping.opening import Identity, identity_of
from polyvol.mapping.records.devices import Device


class Claims:
    """The files and disks that are becoming devices."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._taker: set[Path | Identity] = set()

    @contextlib.contextmanager
    def at(self, path: Path) -> Iterator[None]:
        """Claim the file or disk at a path (CL1)."""
        with contextlib.ExitStack() as claims:
            self._take(claims, path, path)
            identity = identity_of(path)
            if identity is not None:
                self._take(claims, path, identity, *occupied.same_storage(identity))
            yield

    def _take(
        self, claims: contextlib.ExitStack, path: Path, what: Path | Identity, *shared: Identity
    ) -> None:
        with self._context.catalog_lock:
            if not self._taker.isdisjoint({what, *shared}):
                raise DiskInUse(path=path, use="being opened by another command just now")
            self._taker.add(what)
            claims.callback(self._release, what)

    def _release(self, what: Path | Identity) -> None:
        with self._context.catalog_lock:
            self._taker.remove(what)

    def refuse_shared(self, path: Path, identity: Identity, *, but: int | None = None) -> None:
        """An error if a file or disk has bytes in common with a device (CL1), other than `but`."""
        context = self._context
        shared = occupied.same_storage(identity)
        others = context.catalog.devices.all()
        paths = identities(context, [other for other in others if other.id not in context.files])
        for other in others:
            file = context.files.get(other.id)
            here = paths.get(other.id) if file is None else file.identity
            if other.id == but or here is None or here not in shared:
                continue
            if here == identity:
                raise DevicePathInUse(path=path, name=other.name)
            raise DiskInUse(path=path, use=f"the same storage as device {other.name}, or a part of it")

    def known(self, found: Found) -> Device | None:
        """The device that this is, if it was missing; an error if it is a device in use."""
        context = self._context
        devices = [device for device in context.catalog.devices.all() if device.id in context.device_trouble]
        paths = identities(context, devices)
        for device in devices:
            if (
                self.may_be(device, found, paths)
                and trouble_with(device, found, context.catalog.uuid) is None
            ):
                return device
        self.refuse_shared(found.path, found.identity)
        for device in context.catalog.devices.all():
            # The same disk may have two numbers, one for each path (multipath).
            if found.kind == "block" and device.identity is not None and device.identity == found.lasting:
                raise DevicePathInUse(path=found.path, name=device.name)
            if is_own(found.label, device, context.catalog.uuid):
                owner = f"device {device.name}, which is {context.path(device)}"
                raise ForeignLabel(path=found.path, owner=owner)
        return None

    def may_be(self, device: Device, found: Found, paths: Mapping[int, Identity | None]) -> bool:
        """Whether what was found may be a device that is missing: by its label, by what it is known by, or by
        its path (`paths`: from `identities`)."""
        if device.adopted and device.identity is not None:
            return device.identity == found.lasting
        here = paths.get(device.id)
        return here == found.identity or is_own(found.label, device, self._context.catalog.uuid)
