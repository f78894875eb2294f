"""Opening: one descriptor for a file or disk, opened safely and held against other programs.

How it works      A path is walked one component at a time, each relative to the directory before it, so that
                  the checked file is the opened one. A symbolic link is followed only if only root and this
                  process's user could have made it; /dev/disk/by-id and the like are such links.
                  A disk is opened with O_EXCL: mkfs, mount, LVM and other claims then fail with EBUSY. A file
                  (and a disk, for QEMU) is locked: open file description locks on the bytes on which QEMU
                  has its own, and on one more byte. Locks and claim last until the last descriptor of the
                  opening is closed; code that needs its own opening uses `OpenFile.proc_path`.
Invariants        OP1 a symbolic link that others could have put there is never followed; OP2 `create_file`
                  makes a new file or fails; OP3 of two processes that hold the same file or disk, one fails;
                  OP4 a name is removed only while it is the name of the open file.
Errors            OSError of the calls; UnsafeLink, DeviceUnusable; HeldByOther if another holder has it.
                  Where a file system has no locks, a file is not held, and `held` says so.
"""

import errno
import fcntl
import glob
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from polyvol.mapping.durable import sync_directory
from polyvol.mapping.errors import DeviceUnusable, UnsafeLink

Kind = Literal["file", "block"]
Identity = tuple[int, int]
"""What the running system knows a file by (file system, inode) or a disk (0, device number)."""

LINKS_MAX = 40
QEMU_LOCKS = ((100, 4), (200, 4))
"""First byte and count: QEMU has a shared lock on byte 100 + N while it uses permission N of an image, and on
byte 200 + N while it lets nobody else use it."""
OWN_LOCK = 300
"""The byte on which a polyvold has an exclusive lock."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""
_FLOCK = struct.Struct("hhqqi0q")
_LINK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class HeldByOther(Exception):
    """Another program, or another opening of this one, has the file or disk for itself."""


@dataclass(slots=True)
class OpenFile:
    """An open file or disk: the descriptor, the path that it was opened by, and what it is. `held`: nobody
    else can hold it. `size`: its length in bytes when it was last inspected."""

    fd: int
    path: Path
    kind: Kind
    identity: Identity
    held: bool = False
    size: int = 0

    @property
    def proc_path(self) -> str:
        """A path by which this process can open the same file or disk again, whatever its names are."""
        return f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        """Close it; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identity_of(path: Path) -> Identity | None:
    """What the system knows the file or disk at this path by, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _identity(status)


def open_file(path: Path, *, write: bool = True, hold: bool = True) -> OpenFile:
    """Open the file or disk at this absolute path; `hold`: so that nobody else can hold it."""
    with _walked(path) as (directory, name, entry):
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        status = os.fstat(entry)
        kind = _kind(path, status)
        # O_NONBLOCK: a pipe that has taken the file's place must not hold us up.
        flags = os.O_RDWR if write else os.O_RDONLY
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if hold and kind == "block":
            flags |= os.O_EXCL
        try:
            fd = os.open(name, flags, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise HeldByOther from error
            raise
    return _opened(fd, path, kind, _identity(status), hold=hold)


def create_file(path: Path) -> OpenFile:
    """Make an empty file and hold it; its name survives power loss. FileExistsError if there is anything of
    this name."""
    with _walked(path) as (directory, name, _):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            sync_directory(Path(), dir_fd=directory)
        except BaseException:
            os.close(fd)
            raise
    return _opened(fd, path, "file", _identity(os.fstat(fd)), hold=True)


def take_over(fd: int, path: Path) -> OpenFile:
    """An OpenFile of a descriptor that an earlier process had opened and holds; it is closed on an error."""
    try:
        status = os.fstat(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EBADF, "it is not open for writing")
        kind = _kind(path, status)
    except BaseException:
        os.close(fd)
        raise
    return _opened(fd, path, kind, _identity(status), hold=True)


def remove_name(path: Path, identity: Identity) -> bool:
    """Remove a file's name, durably; False if the name is gone, or another file's: then nothing is done."""
    try:
        with _walked(path) as (directory, name, entry):
            if entry is None or _identity(os.fstat(entry)) != identity:
                return False
            os.unlink(name, dir_fd=directory)
            sync_directory(Path(), dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def matching(directory: Path, pattern: str) -> list[Path]:
    """What there is below a directory that matches a pattern (`*`). Unlike `Path.glob`, it passes over
    directories that somebody removes at the same time."""
    return [directory / name for name in glob.glob(pattern, root_dir=directory)]  # noqa: PTH207


def is_held(fd: int) -> bool:
    """Whether somebody else has locks on an open file with which it could not be held. Takes none."""
    try:
        return any(_conflict(fd, first, count) for first, count in (*QEMU_LOCKS, (OWN_LOCK, 1)))
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise


def _opened(fd: int, path: Path, kind: Kind, identity: Identity, *, hold: bool) -> OpenFile:
    try:
        os.set_blocking(fd, True)
        status = os.fstat(fd)
        if _identity(status) != identity or _kind(path, status) != kind:
            raise DeviceUnusable(path=path, why="it was replaced while it was being opened")
        return OpenFile(fd, path, kind, identity, held=hold and _lock(fd))
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def _walked(path: Path) -> Iterator[tuple[int, str, int | None]]:
    """Where a path leads: a descriptor (O_PATH) of the directory, the last name, and a descriptor of what has
    that name, None if nothing has. The last is no symbolic link."""
    fds = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    names = [*reversed(path.parts[1:])] or ["."]
    links = 0
    try:
        while True:
            name = names.pop()
            entry = _entry(fds[-1], name, last=not names)
            if entry is None:
                yield fds[-1], name, None
                return
            fds.append(entry)
            status = os.fstat(entry)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = _target(path, fds[-2], name, status, fds[-1])
                os.close(fds.pop())
                names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                names = names or ["."]
                if target.is_absolute():
                    fds.append(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            elif not names:
                yield fds[-2], name, fds[-1]
                return
            elif len(fds) > 1:
                os.close(fds.pop(-2))
    finally:
        for fd in fds:
            os.close(fd)


def _entry(directory: int, name: str, *, last: bool) -> int | None:
    """A descriptor of what has this name, be it a symbolic link; None if nothing has, and it is the last."""
    try:
        return os.open(name, _LINK, dir_fd=directory)
    except FileNotFoundError:
        if last:
            return None
        raise


def _target(path: Path, directory: int, name: str, link: os.stat_result, fd: int) -> PurePosixPath:
    """Where a symbolic link leads to; UnsafeLink if others could have put it there (OP1)."""
    above = os.fstat(directory)
    trusted = {0, os.geteuid()}
    others_write = above.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX
    if above.st_uid not in trusted or link.st_uid not in trusted or others_write:
        raise UnsafeLink(path=path, link=name)
    return PurePosixPath(os.readlink("", dir_fd=fd))


def _lock(fd: int) -> bool:
    """Lock an open file against other holders (OP3); False where its file system has no locks."""
    try:
        _set_lock(fd, fcntl.F_WRLCK, OWN_LOCK, 1)
        # As QEMU does: first the shared locks, then a look at others', so that one of two sees the other.
        for first, count in QEMU_LOCKS:
            _set_lock(fd, fcntl.F_RDLCK, first, count)
        if any(_conflict(fd, first, count) for first, count in QEMU_LOCKS):
            raise HeldByOther
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise HeldByOther from error
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _set_lock(fd: int, kind: int, first: int, count: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, first, count, 0))


def _conflict(fd: int, first: int, count: int) -> bool:
    """Whether another opening has any lock on these bytes."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _identity(status: os.stat_result) -> Identity:
    if stat.S_ISBLK(status.st_mode):
        return (0, status.st_rdev)
    return (status.st_dev, status.st_ino)


def _kind(path: Path, status: os.stat_result) -> Kind:
    if stat.S_ISREG(status.st_mode):
        return "file"
    if stat.S_ISBLK(status.st_mode):
        return "block"
    raise DeviceUnusable(path=path, why="it is neither a regular file nor a block device")
