"""ledger: the possible contents of each volume and snapshot, under concurrent writes and verbs.

How it works      What an export may hold is one or more images. An image has, for each sector, the contents
                  that are certain, and for some sectors others that are possible too: those of writes that
                  were in flight, or that were made while a verb was. A write adds its contents to all images
                  that it may reach when it is issued; when it is acknowledged they are the only ones. A
                  snapshot that is being taken starts with the volume's images and gets every later write as a
                  possibility until it is reported. A rollback or a growth that is in flight makes the volume
                  have the images before it and the images after it. A kill leaves all this as it is:
                  `compare` then reads the whole export, finds the image that it is, and makes what it found
                  certain.
Invariants        G1 a sector is written by one client at a time; G2 one verb at a time replaces a volume's
                  contents or size (rollback, growth); any number of others run concurrently; G3 names of
                  volumes and snapshots are not used twice.
Owner and locks   `lock` over everything here; no thread waits for a daemon while holding it.
Errors            Lost, with the first difference.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.crash.history import SECTOR, TAG, ZEROES, Lost, content

CHUNK = 64 << 10
BLOCK_SECTORS = 8


@dataclass
class Image:
    """What an export may hold. `loose`: the tags of what else a sector may hold. `side`: the verb that this
    image is of, and whether as after it."""

    data: bytearray
    loose: dict[int, set[int]] = field(default_factory=dict)
    side: tuple[int, bool] | None = None

    def copy(self, *, side: tuple[int, bool] | None = None, size: int | None = None) -> "Image":
        """A copy, of another size if so: what is new is zeros."""
        data = self.data + bytes(max(0, (size or 0) - len(self.data)))
        return Image(data, {sector: set(tags) for sector, tags in self.loose.items()}, side)

    def may_be(self, first: int, count: int, tag: int) -> None:
        """Some sectors, as far as there are such, may hold what this write writes."""
        for sector in range(first, min(first + count, len(self.data) // SECTOR)):
            self.loose.setdefault(sector, set()).add(tag)

    def is_now(self, first: int, data: bytes) -> None:
        """Some sectors hold this. An image that does not have them is not what the volume is, and stays."""
        if first * SECTOR + len(data) > len(self.data):
            return
        self.data[first * SECTOR : first * SECTOR + len(data)] = data
        for sector in range(first, first + len(data) // SECTOR):
            self.loose.pop(sector, None)

    def difference(self, found: bytes) -> str | None:
        """The first sector that holds what it may not, or None."""
        if len(found) != len(self.data):
            return f"its size is {len(found)} bytes, wanted {len(self.data)}"
        for sector in _different(self.data, found):
            is_there = found[sector * SECTOR : (sector + 1) * SECTOR]
            tags = self.loose.get(sector, ())
            if not any(is_there == content(tag, sector) for tag in tags):
                was = bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])
                wanted = " or ".join([_named(was, sector), *(_named(content(tag, sector)) for tag in tags)])
                block, part = divmod(sector, BLOCK_SECTORS)
                return (
                    f"block {block} (sector {part} of it): found {_named(is_there, sector)}, wanted {wanted}"
                )
        return None


def _different(one: bytes | bytearray, other: bytes) -> Iterator[int]:
    """The sectors in which two runs of bytes of one length differ."""
    if one == other:
        return
    for at in range(0, len(one), CHUNK):
        if one[at : at + CHUNK] != other[at : at + CHUNK]:
            for sector in range(at // SECTOR, min(at + CHUNK, len(one)) // SECTOR):
                begin = sector * SECTOR
                if one[begin : begin + SECTOR] != other[begin : begin + SECTOR]:
                    yield sector


def _named(data: bytes, sector: int | None = None) -> str:
    tag, at = TAG.unpack_from(data)
    if data == ZEROES:
        return "zeros"
    if data != content(tag, at):
        return f"bytes that nobody wrote ({data[:16].hex()}...)"
    return f"write {tag}" if sector in (None, at) else f"write {tag} of sector {at}"


@dataclass
class Held:
    """A snapshot. `leaving`: how many verbs that delete it are in flight. `dropped`: it may go at any time
    unless somebody holds it. `tags`: those that are known to hold it. `whole`: the group's snapshot that it
    is part of. `certain`: its bytes are known."""

    images: list[Image]
    leaving: int = 0
    dropped: bool = False
    tags: set[str] = field(default_factory=set)
    whole: str | None = None
    certain: bool = False


@dataclass
class Live:
    """A volume. `taking`: the snapshots that are being taken; `since`: what one that polyvold takes of its
    own accord would hold. `changing`: a verb that makes it another is in flight; `catalog_lock`: how often
    such a verb began or ended. `quiet`: no client is to connect; `clients`: how many have."""

    name: str
    images: list[Image]
    snapshots: dict[str, Held] = field(default_factory=dict)
    taking: dict[str, Held] = field(default_factory=dict)
    since: Held = field(default_factory=lambda: Held([]))
    in_flight: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    changing: bool = False
    changes: int = 0
    leaving: bool = False
    quiet: int = 0
    clients: int = 0

    @property
    def size(self) -> int:
        """Its size in bytes, the smaller one while it grows."""
        return min(len(image.data) for image in self.images)

    def copies(self) -> list[Image]:
        """What a snapshot that is taken now may hold."""
        return [image.copy() for image in self.images]

    def watch(self) -> None:
        """From now on a schedule of polyvold may take snapshots."""
        self.since = Held(self.copies(), dropped=True)

    def reached(self) -> Iterator[Image]:
        """All images that a write may reach."""
        for held in (*self.taking.values(), self.since):
            yield from held.images
        yield from self.images


class Ledger:
    """All volumes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.volumes: dict[str, Live] = {}
        self.making: dict[str, Live] = {}
        """Volumes and clones that are being made."""
        self.groups: dict[str, set[str]] = {}
        self.numbers = itertools.count(1)

    # Writes

    def issue(self, live: Live, first: int, count: int, tag: int) -> tuple[int, int]:
        """A write is about to be sent; what `done` wants."""
        number = next(self.numbers)
        with self.lock:
            live.in_flight[number] = (first, count, tag)
            for image in live.reached():
                image.may_be(first, count, tag)
            return number, live.changes

    def done(self, live: Live, ticket: tuple[int, int], first: int, data: bytes) -> None:
        """A write was acknowledged. If a verb began or ended during it, their order is unknown."""
        number, changes = ticket
        with self.lock:
            live.in_flight.pop(number, None)
            if not live.changing and live.changes == changes:
                for image in live.images:
                    image.is_now(first, data)

    # Snapshots

    def begin_taking(self, live: Live, name: str, *, dropped: bool = False, whole: str | None = None) -> None:
        """A snapshot of this name is about to be asked for."""
        with self.lock:
            live.taking[name] = Held(live.copies(), dropped=dropped, whole=whole)

    def end_taking(self, live: Live, name: str, *, done: bool) -> None:
        """It was reported, or refused."""
        with self.lock:
            held = live.taking.pop(name)
            if done:
                live.snapshots[name] = held

    # Verbs that replace a volume's contents

    def begin_change(self, live: Live, after: Iterable[Image], verb: int) -> None:
        """A verb is about to be asked for, after which the volume has one of these images (G2)."""
        with self.lock:
            live.changing = True
            live.changes += 1
            new = [image.copy(side=(verb, True), size=live.size) for image in after]
            for image in live.images:
                image.side = (verb, False)
            for first, count, tag in live.in_flight.values():
                for image in new:
                    image.may_be(first, count, tag)
            for held in (*live.taking.values(), live.since):
                held.images += [image.copy() for image in new]
            live.images += new

    def end_change(self, live: Live, *, done: bool) -> None:
        """It was reported, or refused."""
        with self.lock:
            live.images = [image for image in live.images if image.side is not None and image.side[1] == done]
            for image in live.images:
                image.side = None
            live.changing = False
            live.changes += 1

    # After a restart

    def compare(self, export: str, held: Held | Live, found: bytes) -> set[tuple[int, bool]]:
        """Compare all bytes of an export; the sides that they may be of. They are certain from now on."""
        with self.lock:
            differences = [image.difference(found) for image in held.images]
            fitting = [image for image, wrong in zip(held.images, differences, strict=True) if wrong is None]
            if not fitting:
                several = (
                    f" (and it is none of {len(differences) - 1} other images)" if differences[1:] else ""
                )
                raise Lost(f"{export}, {differences[0]}{several}")
            sides = {image.side for image in fitting if image.side is not None}
            held.images = [Image(bytearray(found))]
            return sides

    def settled(self) -> None:
        """Nothing is in flight any more, and everything was compared."""
        with self.lock:
            for live in self.volumes.values():
                live.taking.clear()
                live.in_flight.clear()
                live.changing = live.leaving = False
                live.quiet = 0
                live.changes += 1
                live.watch()
