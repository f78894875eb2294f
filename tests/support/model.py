"""model: random operations on a volume, against the same operations on bytes in memory.

How it works      hypothesis draws a list of operations; `Model.run` does each on a system (the engine in this
                  process, or a polyvold behind NBD) and on its own bytes. After each change the bytes around
                  it are read back; after each cut, delete and restart the live volume and every snapshot are
                  compared whole. A burst is several changes at once, from several threads, with a cut in the
                  midst: each sector of that snapshot is old or new, and never changes afterwards.
Invariants        A change that fails may fail with ENOSPC alone, and then each of its sectors is old or new.
                  TRIM leaves partial blocks alone; a whole block reads zero afterwards or, where the system
                  says that its devices keep what is trimmed, as before.
Errors            AssertionError that names the first byte that is wrong.
"""

import errno
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from hypothesis import strategies as st

BLOCK = 4096
SECTOR = 512
MARGIN_BYTES = 5000
SNAPSHOTS_MAX = 6

Bytes = bytes | bytearray | memoryview


class System(Protocol):
    """What is tested. Calls raise OSError with the errno that a host sees."""

    size: int
    keeps_trimmed: bool
    """Whether a whole block may read as before after TRIM (devices without holes)."""

    def read(self, length: int, offset: int) -> bytes:
        """Read the live volume."""

    def write(self, data: bytes, offset: int, *, fua: bool = False) -> None:
        """Write; may be called from several threads."""

    def zero(self, length: int, offset: int, *, no_hole: bool, fast: bool, fua: bool) -> None:
        """WRITE_ZEROES."""

    def trim(self, length: int, offset: int, *, fua: bool) -> None:
        """TRIM."""

    def flush(self) -> None:
        """FLUSH."""

    def statuses(self) -> Iterable[tuple[int, bool]]:
        """Block status of the whole live volume: (length, reads as zeroes)."""

    def read_snapshot(self, name: str) -> bytes:
        """The whole of a snapshot; also asserts that it cannot be written."""

    def cut(self, *, own_rule: bool) -> str:
        """Take a snapshot; its name."""

    def delete(self, name: str) -> None:
        """Delete a snapshot."""

    def restart(self, *, kill: bool) -> None:
        """Stop, or kill, and start again."""

    def grow(self) -> None:
        """Add a small change log."""


@dataclass(frozen=True)
class Write:
    """WRITE of bytes that follow from the seed."""

    offset: int
    length: int
    seed: int
    fua: bool = False


@dataclass(frozen=True)
class Zero:
    """WRITE_ZEROES."""

    offset: int
    length: int
    no_hole: bool = False
    fast: bool = False
    fua: bool = False


@dataclass(frozen=True)
class Trim:
    """TRIM."""

    offset: int
    length: int
    fua: bool = False


@dataclass(frozen=True)
class Read:
    """READ."""

    offset: int
    length: int


@dataclass(frozen=True)
class Flush:
    """FLUSH."""


@dataclass(frozen=True)
class Cut:
    """A snapshot, with a log rule of its own, or with those of the volume."""

    own_rule: bool = False


@dataclass(frozen=True)
class Delete:
    """The nth snapshot's end, if there are so many."""

    nth: int


@dataclass(frozen=True)
class Restart:
    """A new start on the same state."""

    kill: bool = False


@dataclass(frozen=True)
class Grow:
    """One more change log."""


@dataclass(frozen=True)
class Burst:
    """Writes at once, with or without a cut during them."""

    writes: tuple[Write, ...]
    cut: bool


Op = Write | Zero | Trim | Read | Flush | Cut | Delete | Restart | Grow | Burst


def ranges(size: int, longest: int = 200_000) -> st.SearchStrategy[tuple[int, int]]:
    """(offset, length) within a volume: anything, whole blocks, one block, the end, all of it."""
    blocks = size // BLOCK
    long_blocks = max(1, longest // BLOCK)
    anything = st.tuples(st.integers(0, size - 1), st.integers(1, longest))
    aligned = st.tuples(st.integers(0, blocks - 1), st.integers(1, long_blocks)).map(
        lambda run: (run[0] * BLOCK, run[1] * BLOCK)
    )
    block = st.integers(0, blocks - 1).map(lambda number: (number * BLOCK, BLOCK))
    small = st.tuples(st.integers(0, size - 1), st.integers(1, 3))
    end = st.integers(1, longest).map(lambda length: (size - length, length))
    whole = st.just((0, size))
    drawn = st.one_of(anything, aligned, aligned, block, block, small, end, whole)
    return drawn.map(lambda run: (run[0], min(run[1], size - run[0])))


def _disjoint(writes: Sequence[Write]) -> tuple[Write, ...]:
    """Those that overlap none before them: of two at once on one place, nobody knows which wins."""
    kept: list[Write] = []
    for write in writes:
        if all(
            write.offset + write.length <= other.offset or other.offset + other.length <= write.offset
            for other in kept
        ):
            kept.append(write)
    return tuple(kept)


def operations(size: int, *, restarts: bool = True, longest: int = 200_000) -> st.SearchStrategy[list[Op]]:
    """Lists of operations on a volume of this size."""
    seeds = st.integers(1, 1 << 30)
    flag = st.booleans()
    run = ranges(size, longest)

    def write(drawn: tuple[tuple[int, int], int, bool]) -> Write:
        return Write(*drawn[0], *drawn[1:])

    writes = st.tuples(run, seeds, flag).map(write)
    small_writes = st.tuples(ranges(size, 40_000), seeds, flag).map(write)
    bursts = st.builds(Burst, st.lists(small_writes, min_size=2, max_size=8).map(_disjoint), flag)
    zeroes = st.tuples(run, flag, flag, flag).map(lambda drawn: Zero(*drawn[0], *drawn[1:]))
    trims = st.tuples(run, flag).map(lambda drawn: Trim(*drawn[0], drawn[1]))
    reads = run.map(lambda drawn: Read(*drawn))
    often: list[st.SearchStrategy[Op]] = [writes, writes, writes, writes, bursts, st.builds(Cut, flag)]
    seldom: list[st.SearchStrategy[Op]] = [zeroes, trims, reads, st.builds(Delete, st.integers(0, 5))]
    seldom.append(
        st.one_of(st.just(Flush()), st.just(Grow()), *([st.builds(Restart, flag)] if restarts else []))
    )
    return st.lists(st.one_of(*often, *often, *seldom, *seldom), min_size=1, max_size=40)


def content(seed: int, length: int) -> bytes:
    """The bytes that a write with this seed writes."""
    return random.Random(seed).randbytes(length)


def errno_of(call: Callable[[], object]) -> int:
    """The errno that a call fails with; 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def same(what: str, found: Bytes, expected: Bytes, start: int = 0) -> None:
    """Compare, and name the first byte that differs."""
    assert len(found) == len(expected), f"{what}: {len(found)} bytes, not {len(expected)}"
    if found == expected:
        return
    at = next(index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    place = start + at
    raise AssertionError(
        f"{what}: byte {place} (block {place // BLOCK}, {place % BLOCK} within) is {found[at]},"
        f" not {expected[at]}"
    )


class Model:
    """The bytes that a system should have, and its snapshots'."""

    def __init__(self, system: System, base: bytes | None = None) -> None:
        self.system = system
        self.live = bytearray(base or system.size)
        self.snapshots: dict[str, bytes] = {}
        self.refused = 0
        """How many changes found no space."""

    def run(self, ops: Iterable[Op]) -> None:
        """Do all of them, then compare everything."""
        for op in ops:
            self.step(op)
        self.check()

    def step(self, op: Op) -> None:
        """Do one."""
        system = self.system
        match op:
            case Write(offset, length, seed, fua):
                data = content(seed, length)
                self._change(offset, data, lambda: system.write(data, offset, fua=fua))
            case Zero(offset, length):
                self._zero(op)
            case Trim(offset, length, fua):
                system.trim(length, offset, fua=fua)
                self._trimmed(offset, length)
            case Read(offset, length):
                self._check_range("a read", offset, offset + length)
            case Flush():
                system.flush()
            case Cut(own_rule):
                self._cut(own_rule)
            case Delete(nth):
                self._delete(nth)
            case Restart(kill):
                system.restart(kill=kill)
                self.check()
            case Grow():
                system.grow()
            case Burst(writes, cut):
                self._burst(writes, cut)

    def check(self) -> None:
        """Compare the live volume, its block status and every snapshot."""
        same("the live volume", self.system.read(self.system.size, 0), self.live)
        at = 0
        for length, zero in self.system.statuses():
            if zero:
                same("what is said to be zero", bytes(length), memoryview(self.live)[at : at + length], at)
            at += length
        assert at == self.system.size, f"block status covers {at} bytes"
        for name, held in self.snapshots.items():
            same(f"snapshot {name}", self.system.read_snapshot(name), held)

    def _zero(self, op: Zero) -> None:
        def zero() -> None:
            self.system.zero(op.length, op.offset, no_hole=op.no_hole, fast=op.fast, fua=op.fua)

        self._change(op.offset, bytes(op.length), zero, may_refuse=op.fast)

    def _change(
        self, offset: int, data: bytes, call: Callable[[], None], *, may_refuse: bool = False
    ) -> None:
        match errno_of(call):
            case 0:
                self.live[offset : offset + len(data)] = data
            case errno.ENOSPC:
                self._refused(offset, data)
            case other:
                slow = may_refuse and other in (errno.ENOTSUP, errno.EOPNOTSUPP)
                assert slow, f"a change failed with {errno.errorcode.get(other, other)}"
        self._check_range("a change", offset, offset + len(data))

    def _refused(self, offset: int, data: bytes) -> None:
        self.refused += 1
        found = self.system.read(len(data), offset)
        self._old_or_new("a change that found no space", offset, found, [(offset, data)])
        self.live[offset : offset + len(data)] = found

    def _old_or_new(self, what: str, start: int, found: bytes, changes: Sequence[tuple[int, bytes]]) -> None:
        """Each sector of what was found is as in `live` or, whole, as one of the changes has it."""
        expected = bytearray(self.live[start : start + len(found)])
        for offset, data in changes:
            at = offset
            while at < offset + len(data):
                end = min(at - at % SECTOR + SECTOR, offset + len(data))
                new = data[at - offset : end - offset]
                if found[at - start : end - start] == new:
                    expected[at - start : end - start] = new
                at = end
        same(f"{what}, neither old nor new", found, expected, start)

    def _trimmed(self, offset: int, length: int) -> None:
        first, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
        if first < end:
            found = self.system.read(end - first, first)
            if not self.system.keeps_trimmed:
                same("what was trimmed", found, bytes(end - first), first)
            for at in range(0, end - first, BLOCK):
                block = found[at : at + BLOCK]
                if block != bytes(BLOCK):
                    was = self.live[first + at : first + at + BLOCK]
                    same("a trimmed block, neither zero nor as before", block, was, first + at)
            self.live[first:end] = found
        self._check_range("a trim", offset, offset + length)

    def _check_range(self, what: str, start: int, end: int) -> None:
        start, end = max(0, start - MARGIN_BYTES), min(self.system.size, end + MARGIN_BYTES)
        same(f"after {what}", self.system.read(end - start, start), memoryview(self.live)[start:end], start)

    def _cut(self, own_rule: bool) -> None:
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            self._delete(0)
        self.snapshots[self.system.cut(own_rule=own_rule)] = bytes(self.live)
        self.check()

    def _delete(self, nth: int) -> None:
        if nth < len(self.snapshots):
            name = list(self.snapshots)[nth]
            del self.snapshots[name]
            self.system.delete(name)
            self.check()

    def _burst(self, writes: Sequence[Write], cut: bool) -> None:
        changes = [(write.offset, content(write.seed, write.length)) for write in writes]
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            self._delete(0)
        with ThreadPoolExecutor(len(writes) + 1) as pool:
            done = [
                pool.submit(self.system.write, data, write.offset, fua=write.fua)
                for write, (_, data) in zip(writes, changes, strict=True)
            ]
            name = pool.submit(self.system.cut, own_rule=False).result() if cut else None
            errors = [future.exception() for future in done]
        if name is not None:
            held = self.system.read_snapshot(name)
            self._old_or_new(f"snapshot {name} amid writes", 0, held, changes)
            self.snapshots[name] = held
        for (offset, data), error in zip(changes, errors, strict=True):
            if error is None:
                self.live[offset : offset + len(data)] = data
            elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
                self._refused(offset, data)
            else:
                raise error
        self.check()
