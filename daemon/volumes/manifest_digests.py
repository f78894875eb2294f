"""Manifest digests: recorded at a clean stop, so that the next start notices older manifests.

How it works      Journals and manifests that were restored together from an older copy agree with each other.
                  So a clean stop stores digests of each served volume's manifests in the catalog. The next
                  start compares them, and deletes the digests before the engine may change the manifests.
Invariants        MG1 while the catalog has digests of a volume, nothing was written to it since that stop.
Owner and locks   The start and the stop, and `catalog_lock`.
Durability        After a kill there are no digests, so an older copy is not noticed then.
Errors            JournalsUnusable.
"""

import hashlib
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.daemon.errors import JournalsUnusable
from polyvol.daemon.isolation import isolate
from polyvol.mapping.records.volumes import Volume

_COPIES = 1024
"""The bytes of a manifest that have its two copies."""


def begin(context: Context) -> None:
    """Forget the digests that are right."""
    catalog = context.catalog
    right = []
    for volume in catalog.volumes.all():
        with isolate(context, f"looking at the manifests of volume {volume.name}", volume=volume.name):
            if volume.stopped is not None and not other_time(volume, context.manifest_directory(volume)):
                right.append(volume.id)
    if right:
        catalog.volumes.set_stopped(dict.fromkeys(right))


def forget(context: Context) -> None:
    """Forget all digests: an older catalog was accepted, with what there is of journals."""
    context.catalog.volumes.set_stopped(dict.fromkeys(volume.id for volume in context.catalog.volumes.all()))


def check(context: Context, volume: Volume) -> None:
    """JournalsUnusable if a volume's manifests are not those of the last clean stop; forget the digests."""
    if volume.stopped is not None:
        why = other_time(volume, context.manifest_directory(volume))
        if why is not None:
            raise JournalsUnusable(name=volume.name, why=why)
        context.catalog.volumes.set_stopped({volume.id: None})


def end(context: Context) -> None:
    """The engine has stopped, and all is durable: keep the digests of the volumes that it served."""
    catalog, digests = context.catalog, {}
    for volume in catalog.volumes.all():
        with isolate(context, f"looking at the manifests of volume {volume.name}", volume=volume.name):
            if context.is_served(volume) and volume.stopped is None:
                digests[volume.id] = _pack(_digests(context.manifest_directory(volume)))
    catalog.volumes.set_stopped(digests)


def other_time(volume: Volume, directory: Path) -> str | None:
    """What is wrong with the manifests in this directory; None if they are as the catalog expects them."""
    if volume.stopped is None:
        return None
    left, here = _unpack(volume.stopped), _digests(directory)
    names = sorted(name for name in left.keys() | here.keys() if left.get(name) != here.get(name))
    if not names:
        return None
    path = directory / names[0]
    why = "is not the one that the last clean stop left" if path.exists() else "is missing"
    return f"its manifest {path} {why}"


def _digests(directory: Path) -> dict[str, str]:
    """The digest of each manifest in a directory, by its name."""
    found = {}
    for path in sorted(directory.glob("*.manifest")):
        try:
            with path.open("rb") as file:
                copies = file.read(_COPIES)
        except OSError as error:
            copies = str(error).encode()
        found[path.name] = hashlib.blake2b(copies, digest_size=8).hexdigest()
    return found


def _pack(digests: dict[str, str]) -> str:
    """Digests as the catalog has them."""
    return " ".join(f"{name}:{digest}" for name, digest in digests.items())


def _unpack(text: str) -> dict[str, str]:
    return dict(each.split(":") for each in text.split())
