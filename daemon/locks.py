"""Locks: who may do what to which volume or device, so that a hang of one does not delay the others.

How it works      There are four kinds of locks, taken in this order:
                  1. groups        One for each group. Held while a snapshot of it is made, so that the group
                                   exists when that is recorded, and while it is deleted.
                  2. volumes       One for each volume. A verb holds those of all volumes that it acts on,
                                   from its first question to its end, whatever it waits for. They are taken
                                   together: a verb that waits for one of them holds none of the others.
                  3. devices       One for each device. Held where polyvold itself does I/O on a device:
                                   opening, labels, preallocation, zeroing, closing.
                  4. catalog_lock  One for the process. Held for a transaction of the catalog with the
                                   questions that it depends on (names, free extents, users of a device,
                                   groups), and for changes of the tables in memory that belong to it. Never
                                   held while the engine or the kernel may wait for a device: such calls are
                                   preceded by `may_wait`.
                  Readers (status, list, show) take none of them.
                  A caller that does not get a volume's or a device's lock within WAIT_S, or finds WAITING_MAX
                  waiting for it, is refused: VolumeBusy and others, which name the holder and the time.
                  A caller with a time limit of its own is not refused because of the number that wait:
                  something depends on it (an application is quiesced, a record is made).
                  `lent`: while a cut is waited for, `room` may delete other snapshots of the volume, so that
                  writes continue (daemon/space/change_logs.py).
Who takes them    The verb, once, before its first question: what a route or a job calls takes the locks by
                  `holding...` of daemon/context.py, which gives it the records as they are then. What it
                  calls gets these records as arguments, takes nothing, and says 'The caller holds its lock'.
                  The service and the routes hold nothing. `catalog_lock` is taken where the transaction is,
                  for that and its questions; an answer is made after it (tests/style/test_locks.py).
Invariants        LO1 a holder of `catalog_lock` takes no other lock; LO2 a holder of a device's lock takes no
                  volume's; LO3 a holder of a volume's lock takes another one only of a volume with a higher
                  id (a clone's, after its source's); LO4 no thread takes a lock that it holds; LO5 a thread
                  that takes a group's lock holds nothing.
Owner and locks   `_condition` over who holds what, held for a look or a change.
Errors            GroupBusy, VolumeBusy, DeviceBusy. A breach of LO1 to LO5 is a defect: AssertionError.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NoReturn

from polyvol.daemon.errors import DeviceBusy, GroupBusy, VolumeBusy
from polyvol.daemon.sizes import format_seconds
from polyvol.mapping.ids import VolumeId

WAIT_S = 20.0
"""How long a verb waits for a volume or a device that another one has."""
WAITING_MAX = 8
"""How many may wait for one volume or device at a time."""
Noun = Literal["group", "volume", "device"]
Key = tuple[Noun, int]


class CatalogLock:
    """The lock `catalog_lock`: as threading.Lock, and knows which thread has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0
        self._since_s = 0.0

    def holder(self) -> tuple[int, float] | None:
        """The thread that has it, as `threading.get_ident` says, and for how long, seconds."""
        holder, since_s = self._holder, self._since_s
        return (holder, time.monotonic() - since_s) if holder else None

    @property
    def mine(self) -> bool:
        """Whether the calling thread has it."""
        return self._holder == threading.get_ident()

    def locked(self) -> bool:
        """Whether anybody has it."""
        return self._lock.locked()

    def __enter__(self) -> None:
        assert not self.mine, "LO4: `catalog_lock` is held by this thread already"
        self._lock.acquire()
        self._since_s = time.monotonic()
        self._holder = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder = 0
        self._lock.release()


@dataclass(eq=False)
class Operation:
    """A verb under way: what it does (as 'snapshot create'), to which volumes or devices, since when (by the
    monotonic clock, seconds), by which thread."""

    what: str
    noun: Noun
    names: list[str]
    keys: frozenset[Key]
    since_s: float
    lent: bool = False
    thread: int = field(default_factory=threading.get_ident)


@dataclass
class _Mine(threading.local):
    """What the calling thread holds, oldest first."""

    held: list[Operation] = field(default_factory=list)


class Locks:
    """The locks of one state directory."""

    def __init__(self, steady_s: Callable[[], float] = time.monotonic) -> None:
        self.catalog_lock = CatalogLock()
        self.wait_s = WAIT_S
        self._now = steady_s
        self._condition = threading.Condition()
        self._held: dict[Key, Operation] = {}
        self._room: dict[int, Operation] = {}  # volumes whose snapshots `room` is deleting
        self._apart: list[Operation] = []  # what is shown, and holds nothing
        self._waiting: Counter[Key] = Counter()
        self._closed = False
        self._mine = _Mine()

    @contextmanager
    def volumes(
        self, named: Mapping[VolumeId, str], what: str, *, wait_s: float | None = None
    ) -> Iterator[Operation]:
        """Hold the locks of volumes, given as names by id, to do `what`; VolumeBusy."""
        top = max(
            (key[1] for each in self._mine.held if each.noun == "volume" for key in each.keys), default=-1
        )
        assert all(each.noun != "device" for each in self._mine.held), "LO2"
        assert all(identity > top for identity in named), f"LO3, LO4: {named} after {top}"
        with self._hold("volume", dict[int, str](named.items()), what, wait_s) as operation:
            yield operation

    @contextmanager
    def group(self, identity: int, name: str, what: str) -> Iterator[None]:
        """Hold the lock of a group to do `what`; GroupBusy."""
        assert not self._mine.held, "LO5"
        with self._hold("group", {identity: name}, what, None):
            yield

    @contextmanager
    def device(self, identity: int, name: str, what: str, *, wait_s: float | None = None) -> Iterator[None]:
        """Hold the lock of a device to do `what`; DeviceBusy."""
        assert all(("device", identity) not in each.keys for each in self._mine.held), "LO4"
        with self._hold("device", {identity: name}, what, wait_s):
            yield

    @contextmanager
    def lent(self, operation: Operation) -> Iterator[None]:
        """While a volume's cut is waited for: `room` may be made in the volumes of this operation."""
        with self._condition:
            operation.lent = True
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                operation.lent = False
                # Bounded by what `room` does to these very volumes.
                self._condition.wait_for(lambda: not any(key[1] in self._room for key in operation.keys))

    @contextmanager
    def room(
        self, named: Mapping[VolumeId, str], what: str, *, wait_s: float | None = None
    ) -> Iterator[None]:
        """Hold volumes to delete snapshots that are in the catalog, so that writes go on: as `volumes`, but
        also while a cut of them is waited for."""
        assert not self._mine.held, "LO2, LO3"
        assert not self.catalog_lock.mine, "LO1"
        keys = frozenset[Key](("volume", identity) for identity in named)
        operation = Operation(what, "volume", list(named.values()), keys, self._now())
        with self._condition:
            self._wait(keys, dict[int, str](named.items()), wait_s, lending=True)
            operation.since_s = self._now()
            owned = [key for key in keys if key not in self._held]
            self._held.update(dict.fromkeys(owned, operation))
            self._room.update((key[1], operation) for key in keys)
        self._mine.held.append(operation)
        try:
            yield
        finally:
            self._mine.held.remove(operation)
            with self._condition:
                for key in keys:
                    del self._room[key[1]]
                for key in owned:
                    del self._held[key]
                self._condition.notify_all()

    @contextmanager
    def shown(self, names: list[str], what: str) -> Iterator[None]:
        """Show among the operations what is done for volumes, without holding them."""
        operation = Operation(what, "volume", names, frozenset(), self._now())
        with self._condition:
            self._apart.append(operation)
        try:
            yield
        finally:
            with self._condition:
                self._apart = [each for each in self._apart if each is not operation]

    def may_wait(self, what: str) -> None:
        """Called before what may wait for a device: nobody else may have to wait for that (LO1)."""
        assert not self.catalog_lock.mine, f"LO1: {what} may wait for a device, and `catalog_lock` is held"

    def operations(self) -> list[Operation]:
        """What is under way with volumes and devices, longest first."""
        with self._condition:
            held = (*self._held.values(), *self._room.values(), *self._apart)
            found = {id(each): each for each in held if each.noun != "group"}
        return sorted(found.values(), key=lambda each: each.since_s)

    def held(self) -> list[Operation]:
        """All that holds a lock, those of groups too, longest first."""
        with self._condition:
            found = {id(each): each for each in (*self._held.values(), *self._room.values())}
        return sorted(found.values(), key=lambda each: each.since_s)

    def waiting(self, operation: Operation) -> int:
        """How many wait for what this operation has."""
        with self._condition:
            return max((self._waiting[key] for key in operation.keys), default=0)

    def seconds(self, operation: Operation) -> float:
        """How long an operation has been under way."""
        return max(0.0, self._now() - operation.since_s)

    def close(self) -> None:
        """polyvold stops: who waits is refused now."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @contextmanager
    def _hold(
        self, noun: Noun, named: Mapping[int, str], what: str, wait_s: float | None
    ) -> Iterator[Operation]:
        assert not self.catalog_lock.mine, f"LO1: {what}"
        keys = frozenset[Key]((noun, identity) for identity in named)
        operation = Operation(what, noun, list(named.values()), keys, self._now())
        with self._condition:
            self._wait(keys, named, wait_s)
            operation.since_s = self._now()
            self._held.update(dict.fromkeys(keys, operation))
        self._mine.held.append(operation)
        try:
            yield operation
        finally:
            self._mine.held.remove(operation)
            with self._condition:
                for key in keys:
                    del self._held[key]
                self._condition.notify_all()

    def _wait(
        self, keys: frozenset[Key], named: Mapping[int, str], wait_s: float | None, *, lending: bool = False
    ) -> None:
        """Wait until all of these are free at once. Under `_condition`."""

        def holder() -> tuple[Key, Operation] | None:
            for key in keys:
                found = self._room.get(key[1]) if key[0] == "volume" else None
                found = found or self._held.get(key)
                if found is not None and not (lending and found.lent):
                    return key, found
            return None

        found = holder()
        if found is None:
            return
        full = wait_s is None and max(self._waiting[key] for key in keys) >= WAITING_MAX
        self._waiting.update(keys)
        try:
            until = self._now() + (0.0 if full else self.wait_s if wait_s is None else wait_s)
            while found is not None:
                left = until - self._now()
                if left <= 0 or self._closed:
                    (noun, identity), operation = found
                    self._refuse(noun, named[identity], operation)
                self._condition.wait(left)
                found = holder()
        finally:
            self._waiting.subtract(keys)
            self._waiting = +self._waiting

    def _refuse(self, noun: Noun, name: str, operation: Operation) -> NoReturn:
        """Say what holds something that was waited for."""
        what, since = operation.what, format_seconds(int(self.seconds(operation)))
        if noun == "group":
            raise GroupBusy(name=name, what=what, since=since)
        if noun == "device":
            raise DeviceBusy(name=name, what=what, since=since)
        raise VolumeBusy(name=name, what=what, since=since)
