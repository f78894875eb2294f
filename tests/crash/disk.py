"""disk: the possible disk contents after a power loss, derived from a process's writes and syncs.

How it works      `Disk.apply` takes the records of recorder.c one by one. For each file it keeps what is
                  durable, and each newer version of every 512-byte sector; for each directory the changes of
                  names. `image` makes one tree that a power loss now may leave, as a policy chooses.
What is legal     A sector holds its durable content or any later version, whatever others hold. A file has
                  its durable size or any later one; what lies beyond is gone, what was never written reads as
                  zeroes. The changes of names of one directory are kept up to any one of them, in their
                  order, whatever other directories keep. A successful sync made all changes of its file (or
                  directory) durable that were made before it began; a failed one did not, and its changes may
                  be lost whatever later syncs report, until they are written again. This is weaker than the
                  guarantees of ext4 (data=ordered), XFS and btrfs.
Invariants        I1 a policy that keeps everything gives the tree as the process saw it.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.crash.recorder import Kind, Record

SECTOR = 512
ROOT_ID = 1
PROCESS_SHIFT = 24
"""Above it, a file's number says which process of those that were killed it is of."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file's content: `data`, cut off at `size`, or zeroes from there on."""

    data: bytes | bytearray
    size: int


Tree = dict[str, Content | None]
"""Path to content; None: a directory. Parents come before what is in them."""


@dataclass(slots=True)
class Version:
    """What a sector became with one record. `lost`: a sync that was for it has failed."""

    number: int
    data: bytes
    lost: bool = False


@dataclass(slots=True)
class Size:
    """A size that a file got with one record."""

    number: int
    size: int


class File:
    """A file's content: durable, as it is now, and in between."""

    def __init__(self, content: Content | None = None) -> None:
        content = content or Content(b"", 0)
        # Both as far as anything was written, in whole sectors.
        self.now = bytearray(content.data)
        self.now.extend(bytes(-len(self.now) % SECTOR))
        self.durable = bytearray(self.now)
        self.durable_size = content.size
        self.versions: dict[int, list[Version]] = {}
        self.sizes: list[Size] = []

    @property
    def size(self) -> int:
        """Its size now."""
        return self.sizes[-1].size if self.sizes else self.durable_size

    @property
    def is_clean(self) -> bool:
        """Whether everything is durable."""
        return not self.versions and not self.sizes

    def write(self, number: int, offset: int, data: bytes) -> None:
        """`data` was written there."""
        self._resize(number, max(self.size, offset + len(data)))
        self._store(number, offset, data)

    def zero(self, number: int, offset: int, length: int) -> None:
        """The range was made to read as zeroes, within the file's size."""
        end = min(offset + length, self.size, len(self.now))
        step = 1 << 16
        for at in range(offset, end, step):
            piece = bytes(min(step, end - at))
            if self.now[at : at + len(piece)] != piece:
                self._store(number, at, piece)

    def resize(self, number: int, size: int) -> None:
        """The size was set."""
        if size < self.size:
            self.zero(number, size, self.size - size)
        self._resize(number, size)

    def sync(self, before: int, *, failed: bool) -> None:
        """A sync of what was done before record `before` has ended."""
        for sector in list(self.versions):
            versions = self.versions[sector]
            if failed:
                for version in versions:
                    version.lost |= version.number < before
                continue
            kept = [version for version in versions if version.number < before and not version.lost]
            if kept:
                at = sector * SECTOR
                self.durable[at : at + SECTOR] = kept[-1].data
                versions = [version for version in versions if version.number > kept[-1].number]
                if versions:
                    self.versions[sector] = versions
                else:
                    del self.versions[sector]
        self._sync_size(before, failed=failed)

    def image(self, keep: "Keep") -> Content:
        """The content after a power loss."""
        if self.is_clean:
            return Content(self.durable, self.durable_size)
        data = bytearray(self.durable)
        for sector, versions in self.versions.items():
            chosen = keep.version([version.number for version in versions])
            if chosen:
                at = sector * SECTOR
                data[at : at + SECTOR] = versions[chosen - 1].data
        chosen = keep.size([size.number for size in self.sizes])
        size = self.sizes[chosen - 1].size if chosen else self.durable_size
        return Content(data, size)

    def _sync_size(self, before: int, *, failed: bool) -> None:
        kept = [size for size in self.sizes if size.number < before]
        if kept and not failed:
            self.durable_size = kept[-1].size
            self.sizes = [size for size in self.sizes if size.number > kept[-1].number]

    def _resize(self, number: int, size: int) -> None:
        if size != self.size:
            self.sizes.append(Size(number, size))

    def _store(self, number: int, offset: int, data: bytes) -> None:
        begin = offset // SECTOR
        end = -(-(offset + len(data)) // SECTOR)
        for content in (self.now, self.durable):
            content.extend(bytes(max(0, end * SECTOR - len(content))))
        old = bytes(self.now[begin * SECTOR : end * SECTOR])
        self.now[offset : offset + len(data)] = data
        for sector in range(begin, end):
            new = bytes(self.now[sector * SECTOR : (sector + 1) * SECTOR])
            at = (sector - begin) * SECTOR
            if new != old[at : at + SECTOR] or sector in self.versions:
                self.versions.setdefault(sector, []).append(Version(number, new))


@dataclass(slots=True)
class Renaming:
    """A change of names: these are gone, and these are there, by one record."""

    number: int
    gone: tuple[str, ...]
    there: Mapping[str, int]


@dataclass(slots=True)
class Directory:
    """A directory's names."""

    now: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    changes: list[Renaming] = field(default_factory=list)

    def add(self, change: Renaming) -> None:
        """A change was made."""
        _carry_out(change, self.now)
        self.changes.append(change)

    def sync(self, before: int, *, failed: bool) -> None:
        """A sync of what was done before record `before` has ended."""
        while not failed and self.changes and self.changes[0].number < before:
            _carry_out(self.changes.pop(0), self.durable)

    def image(self, keep: "Keep") -> dict[str, int]:
        """The names after a power loss."""
        names = dict(self.durable)
        for change in self.changes[: keep.names([change.number for change in self.changes])]:
            _carry_out(change, names)
        return names


def _carry_out(change: Renaming, names: dict[str, int]) -> None:
    for name in change.gone:
        names.pop(name, None)
    names.update(change.there)


class Keep:
    """A policy for one file: each call says how many of the newer states, numbered by record, are kept."""

    def __init__(self, choose: Callable[[list[int]], int], ordered: Callable[[list[int]], int]) -> None:
        self.version = choose
        self.size = ordered
        self.names = ordered


def _up_to(cutoff: int) -> Callable[[list[int]], int]:
    return lambda numbers: sum(number <= cutoff for number in numbers)


POLICIES = ("nothing", "all", "random", "coin", "up-to", "torn", "newest", "files", "mixed")


def policy(name: str, draw: random.Random, oldest: int, newest: int) -> Callable[[], Keep]:
    """A policy by name: a function that makes one `Keep` for each file or directory. Records from `oldest` to
    `newest` are the ones that may be lost."""
    nothing, everything = (lambda numbers: 0), len
    some = lambda numbers: draw.randint(0, len(numbers))  # noqa: E731 - as short as the others
    cutoff = draw.randint(min(oldest, newest), newest)

    def coin(numbers: list[int]) -> int:
        return len(numbers) if draw.random() < 0.5 else 0

    def torn(numbers: list[int]) -> int:
        kept = _up_to(cutoff)(numbers)
        return kept - 1 if kept and numbers[kept - 1] > cutoff - 4 and draw.random() < 0.5 else kept

    def late(numbers: list[int]) -> int:
        return len(numbers) if numbers and numbers[-1] >= cutoff else 0

    kept = {
        "nothing": Keep(nothing, nothing),
        "all": Keep(everything, everything),
        "random": Keep(some, some),
        "coin": Keep(coin, some),
        "up-to": Keep(_up_to(cutoff), _up_to(cutoff)),
        "torn": Keep(torn, _up_to(cutoff)),
        "newest": Keep(late, coin),
    }
    if name == "files":
        return lambda: kept[draw.choice(("nothing", "all"))]
    if name == "mixed":
        return lambda: kept[draw.choice(("nothing", "all", "random", "coin", "up-to", "newest"))]
    return lambda: kept[name]


class Disk:
    """The state of everything below the recorded root. `base`: what was there, durably, before the log."""

    def __init__(self, base: Tree | None = None) -> None:
        self.files: dict[int, File] = {}
        self.directories: dict[int, Directory] = {}
        self.number = 0
        self._base = base or {}
        self._syncing: dict[int, int] = {}
        self._listed: set[str] = set()

    def apply(self, record: Record) -> None:
        """The next record of the log."""
        self.number += 1
        if self._listed and record.kind not in (Kind.KNOWN, Kind.WRITE):
            self._miss()
        kind, file = record.kind, self.files.get(record.file)
        if kind == Kind.WRITE and file:
            file.write(self.number, record.offset, record.payload)
        elif kind == Kind.TRUNCATE and file:
            file.resize(self.number, record.length)
        elif kind == Kind.ZERO and file:
            file.zero(self.number, record.offset, record.length)
        elif kind == Kind.ALLOCATE and file:
            if not record.flag:
                file.resize(self.number, max(file.size, record.offset + record.length))
        elif kind == Kind.SYNC_BEGIN:
            self._syncing[record.token] = self.number
        elif kind == Kind.SYNC_END:
            before = self._syncing.pop(record.token)
            synced = file or self.directories.get(record.file)
            if synced:
                synced.sync(before, failed=bool(record.flag))
        else:
            self._change_names(record)

    def image(self, name: str, draw: random.Random) -> Tree:
        """One tree that a power loss now may leave, by the policy of this name. Not to be changed."""
        oldest = min(self._oldest(), default=self.number)
        keep = policy(name, draw, oldest, self.number)
        tree: Tree = {}

        def walk(directory: int, path: str) -> None:
            for name, entry in self.directories[directory].image(keep()).items():
                if entry in self.directories:
                    tree[path + name] = None
                    walk(entry, f"{path}{name}/")
                else:
                    tree[path + name] = self.files[entry].image(keep())

        walk(ROOT_ID, "")
        return tree

    def tree(self) -> Tree:
        """Everything as the process saw it (I1)."""
        return self.image("all", random.Random(0))

    def _oldest(self) -> Iterable[int]:
        for file in self.files.values():
            yield from (versions[0].number for versions in file.versions.values())
        yield from (each.changes[0].number for each in self.directories.values() if each.changes)

    def _change_names(self, record: Record) -> None:
        kind, file, first = record.kind, record.file, record.paths[0]
        if kind == Kind.KNOWN:
            self._know(file, first, is_directory=bool(record.flag))
            return
        parent, name = self._parent(first)
        if kind in (Kind.CREATE, Kind.MKDIR):
            if kind == Kind.CREATE:
                self.files[file] = File()
            else:
                self.directories[file] = Directory()
            parent.add(Renaming(self.number, (), {name: file}))
        elif kind in (Kind.UNLINK, Kind.RMDIR):
            if name in parent.now:  # a socket is not
                parent.add(Renaming(self.number, (name,), {}))
        elif kind == Kind.RENAME:
            other, new = self._parent(record.paths[1])
            moved = parent.now[name]
            if other is parent:
                parent.add(Renaming(self.number, (name,), {new: moved}))
            else:
                other.add(Renaming(self.number, (), {new: moved}))
                parent.add(Renaming(self.number, (name,), {}))

    def _know(self, file: int, path: str, *, is_directory: bool) -> None:
        goes_on = file >> PROCESS_SHIFT > 0
        if goes_on:
            self._listed.add(path)
        known = self._find(path)
        if known is not None:  # the log continues with another process, which has numbers of its own
            if is_directory:
                self.directories[file] = self.directories[known]
            else:
                self.files[file] = self.files[known]
            return
        if is_directory:
            self.directories[file] = Directory()
        else:
            self.files[file] = File() if goes_on else File(self._base[path])
        if path:
            parent, name = self._parent(path)
            if goes_on:  # it was made by a process that was killed before it could say so
                parent.add(Renaming(self.number, (), {name: file}))
            else:
                parent.now[name] = parent.durable[name] = file

    def _miss(self) -> None:
        """What the next process did not find was removed by one that was killed before it could say so."""
        listed, self._listed = self._listed, set()

        def walk(directory: Directory, path: str) -> None:
            for name, entry in list(directory.now.items()):
                if path + name not in listed:
                    directory.add(Renaming(self.number - 1, (name,), {}))  # as the last one listed
                elif entry in self.directories:
                    walk(self.directories[entry], f"{path}{name}/")

        walk(self.directories[ROOT_ID], "")

    def _find(self, path: str) -> int | None:
        """The number of a path that is there."""
        if ROOT_ID not in self.directories:
            return None
        if not path:
            return ROOT_ID
        parent, name = self._parent(path)
        return parent.now.get(name)

    def _parent(self, path: str) -> tuple[Directory, str]:
        *parents, name = path.split("/")
        directory = ROOT_ID
        for parent in parents:
            directory = self.directories[directory].now[parent]
        return self.directories[directory], name
