"""The reserve: space in the state directory for operations that free space.

How it works      `reserve` is a file that only occupies space. A delete, a start and a stop first release it
                  if the file system has little space, and make it again when they have ended. Its size is the
                  measured need of deleting the largest volume and of rewriting the catalog after a kill,
                  which is twice the catalog with its log and 2 MiB, plus the first segments of all journals
                  at a start (docs/decisions/0032). Unless there are many, a journal segment is larger, so
                  that writing hosts do not use the released space. A file system can also run out of inodes:
                  `reserve.0` and so on are empty files that reserve some, for the copies, journals and
                  sockets of a start. On a file system without a limit of inodes, such as btrfs, they have
                  attributes that occupy space of its metadata, which making or removing a file needs.
                  `reserve.journals` reserves space for one processor's checkpoint and a small journal
                  segment. It is released while checkpoints replace journals (state_space.py), and at a stop,
                  but not for deletes or a start, so that neither uses the space of the other.
Invariants        RV1 only a holder of the state directory's lock releases it; RV2 nothing depends on it: if
                  it cannot be made, or others use its space, operations fail as without it.
Owner and locks   Any thread; one lock. The last of the callers that released a file makes it again.
Errors            None: a file that cannot be made is retried later (state_space.py).
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from polyvol.mapping.durable import sync_directory
from polyvol.mapping.no_space import is_no_space, probe_path
from polyvol.mapping.opening import matching

NAME = "reserve"
JOURNALS = f"{NAME}.journals"
LEAST = 4 << 20
"""The least size of `reserve`, bytes: its size unless the catalog is large."""
FILES = 32
ATTRIBUTES = 16
ATTRIBUTE_BYTES = 15000
ATTRIBUTE_BYTES_SMALL = 3000
"""Attributes of each of the empty files, where they are to take room of the metadata: 7.3 MiB in all."""
_MORE = 2 << 20
_FIRST_SEGMENT = 68 << 10
"""The smallest journal segment, which a start begins each journal with, and a block for its name."""
_JOURNAL_MORE = 4 << 20
"""A small journal segment, and what a checkpoint can have more than the one before it."""
JOURNALS_MAX = 256 << 20
_SMALLEST = 256 << 10
_STEP = 64 << 10
_BTRFS_SYNC = 0x9408
"""BTRFS_IOC_SYNC: ends a transaction; room is free only then."""


class Reserve:
    """The reserve of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / NAME
        self._journals = state_dir / JOURNALS
        self._lock = threading.Lock()
        self._users = 0
        self._relieving = 0

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Within this context, the space of `reserve` and `reserve.N` is free, if there is little else."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    @contextlib.contextmanager
    def given_up_for_journals(self) -> Iterator[None]:
        """Within this context, the space reserved for journals is free."""
        with self._lock:
            self._relieving += 1
            with contextlib.suppress(OSError):
                self._journals.unlink(missing_ok=True)
                _sync_freed(self._state_dir)
        try:
            yield
        finally:
            with self._lock:
                self._relieving -= 1
            self.make()

    def begin(self) -> None:
        """The same until `end`."""
        with self._lock:
            self._users += 1
            unlimited = _has_unlimited_files(self._state_dir)
            few_files = few_files_left(self._state_dir) or (
                unlimited and not _can_make_files(self._state_dir)
            )
            if few_files or free_bytes(self._state_dir) < self.size():
                self._give_up()

    def begin_stop(self) -> None:
        """The same, for a stop: its last checkpoints have the room that is kept for journals as well."""
        self.begin()
        with self._lock, contextlib.suppress(OSError):
            self._journals.unlink(missing_ok=True)

    def end(self) -> None:
        """Make it again, when all who have called `begin` have called this."""
        with self._lock:
            self._users -= 1
        self.make()

    def make(self) -> None:
        """Have it, or as much of it as there is room for, unless somebody needs that now."""
        with self._lock:
            if not self._users:
                self._take(self._path, self.size())
                self._make_files()
            if not self._users and not self._relieving:
                left = _allocated(self._journals) + free_bytes(self._state_dir)
                self._take(self._journals, min(self.journals_size(), JOURNALS_MAX, left // 2))

    def _take(self, path: Path, wanted: int) -> None:
        """Have `wanted` bytes allocated in a file, or as many as there is room for."""
        held = _allocated(path)
        size = min(wanted, held + free_bytes(self._state_dir, everybody=False))
        while size >= max(_SMALLEST, held + _STEP):
            if try_allocate(path, size) is None:
                break
            size -= max(_STEP, size // 8)

    def _make_files(self) -> None:
        unlimited = _has_unlimited_files(self._state_dir)
        with contextlib.suppress(OSError):
            for path in self._files():
                if not os.path.lexists(path):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                if unlimited:
                    _take_metadata(path)

    def _files(self) -> list[Path]:
        return [self._state_dir / f"{NAME}.{number}" for number in range(FILES)]

    def size(self) -> int:
        """Bytes that it is to have."""
        catalog = sum(_allocated(self._state_dir / f"catalog.db{suffix}") for suffix in ("", "-wal"))
        journals = len(matching(self._state_dir, "manifests/*/*.manifest"))
        return max(LEAST, _MORE + 2 * catalog + journals * _FIRST_SEGMENT)

    def journals_size(self) -> int:
        """Bytes that the next checkpoint of a processor and a small segment take, at most by what the present
        checkpoints say."""
        checkpoints = matching(self._state_dir, "volumes/*/*.checkpoint")
        return _JOURNAL_MORE + max(map(_allocated, checkpoints), default=0)

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            for path in (self._path, *self._files()):
                path.unlink(missing_ok=True)
            _sync_freed(self._state_dir)


def free_bytes(directory: Path, *, everybody: bool = True) -> int:
    """What a file system has for everybody, or for the superuser at most, bytes; 0 if it does not say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return (found.f_bavail if everybody else found.f_bfree) * found.f_frsize


def few_files_left(directory: Path) -> bool:
    """Whether a file system has no room for so many files as are kept; some have no limit of their own."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail < FILES


def _sync_freed(directory: Path) -> None:
    """Make the room of removed files free: some file systems give it back only after a sync. OSError."""
    sync_directory(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # it is not btrfs
            fcntl.ioctl(fd, _BTRFS_SYNC)
    finally:
        os.close(fd)


def _has_unlimited_files(directory: Path) -> bool:
    try:
        return os.statvfs(directory).f_files == 0
    except OSError:
        return False


def _take_metadata(path: Path) -> None:
    """Have a file's attributes take room of the file system's metadata. OSError."""
    present = os.listxattr(path)
    for name in (f"user.polyvol.{number}" for number in range(ATTRIBUTES)):
        if name not in present:
            try:
                os.setxattr(path, name, bytes(ATTRIBUTE_BYTES))
            except OSError:  # its blocks of metadata may be of the smallest size
                os.setxattr(path, name, bytes(ATTRIBUTE_BYTES_SMALL))


def _can_make_files(directory: Path) -> bool:
    """Whether a file can be made, as far as only trying tells."""
    path = probe_path(directory)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.unlink()
    except OSError as error:
        return not is_no_space(error)
    return True


def try_allocate(path: Path, size: int) -> OSError | None:
    """Have `size` bytes allocated in this file; why they could not be. Then it is as it was, or empty."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            before = os.fstat(fd).st_size
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return None


def _allocated(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512)
