"""Files that are made as FILE.partial and become FILE: a file named FILE is complete and durable.

How it works      FILE.partial is made by O_EXCL, or opened to resume, and locked (flock) while it is
                  written. `commit` syncs it, renames it to FILE without replacing anything (renameat2) unless
                  that was asked for, and syncs the directory. Its writer reads it back first. Where FILE is
                  `-`, it is made in a directory for temporary files, and copied to the standard output then.
Invariants        FW1 FILE is not made or changed before `commit`; FW2
                  one process at a time writes FILE.partial, and the locked file still has that name then.
Durability        A kill before `commit` leaves FILE.partial, incomplete; the kernel ends the lock.
Errors            FileExists, FileBusy, TransferFailed, WrongOption.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from polyvol.daemon.backup_errors import FileBusy, FileExists, TransferFailed, WrongOption
from polyvol.daemon.state.directory import state_dir_of
from polyvol.mapping.durable import sync_directory
from polyvol.mapping.opening import NO_LOCKS

OUTPUT = Path("-")
"""Given as FILE: the standard output."""
OUTPUT_NAME = Path("the standard output")
_NOREPLACE = 1
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


class NewFile:
    """FILE.partial, open for reading and writing as `fd`, which the caller has to close. `resume`: it may be
    there already; None: what is written so can never be resumed. `replace`: whether a regular
    FILE that exists is replaced (the option --force); None: the command does not have that option."""

    def __init__(self, path: Path, *, resume: bool | None, replace: bool | None = None) -> None:
        with file_errors(path):
            if not path.name or path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self.path = path
        self._replace = replace
        self.partial = path.with_name(path.name + ".partial")
        self._refuse_existing()
        with file_errors(self.partial):
            self.fd = self._open(resume=resume)
        try:
            with file_errors(self.partial):
                self._lock(exclusive=not resume)
                self.begun = os.fstat(self.fd).st_size > 0
            self._refuse_existing()  # it may have become FILE during the wait
        except BaseException:
            os.close(self.fd)
            raise

    def commit(self) -> None:
        """Make it durable under the name FILE."""
        with file_errors(self.path):
            os.fsync(self.fd)
            try:
                if self._replace:
                    self.partial.rename(self.path)
                else:
                    _rename(self.partial, self.path)
            except FileExistsError as error:
                raise self._exists() from error
            sync_directory(self.path.parent)

    def remove(self) -> None:
        """Remove FILE.partial, which is not needed."""
        with suppress(OSError):
            if self._is_ours():
                self.partial.unlink()

    def _open(self, *, resume: bool | None) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.partial, flags if resume else flags | os.O_EXCL, 0o600)
        except FileExistsError as error:
            if self._is_locked():
                raise FileBusy(path=self.path) from error
            more, todo = ", of a backup that was interrupted", "remove the file"
            if resume is not None:
                todo = f"resume that with --resume, or {todo}"
            raise FileExists(path=self.partial, more=more, todo=todo) from error

    def _lock(self, *, exclusive: bool) -> None:
        """FW2. `exclusive`: this process made the file, so the file system need not support locks."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileBusy(path=self.path) from error
        except OSError as error:
            if not exclusive or error.errno not in NO_LOCKS:
                raise
        if not self._is_ours():
            raise FileBusy(path=self.path)

    def _is_locked(self) -> bool:
        with suppress(FileNotFoundError):
            fd = os.open(self.partial, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
        return False

    def _is_ours(self) -> bool:
        """Whether the open file still has its name."""
        try:
            return os.path.samestat(os.fstat(self.fd), self.partial.lstat())
        except FileNotFoundError:
            return False

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._replace:
            raise self._exists()
        if not stat.S_ISREG(self.path.lstat().st_mode):
            why = "it is there, and is not a regular file"
            raise TransferFailed(what=f"writing {self.path}", why=why, todo="choose another name")

    def _exists(self) -> FileExists:
        todo = "choose another name"
        if self._replace is not None:
            todo += ", or give --force to replace it"
        return FileExists(path=self.path, more="", todo=todo)


@contextmanager
def new_file(path: Path, *, replace: bool | None = None) -> Iterator[NewFile]:
    """FILE.partial, for what cannot be resumed. It becomes FILE after this context, or is removed if an error
    or a signal ends it."""
    with signals_as_errors():
        new = NewFile(path, resume=None, replace=replace)
        try:
            yield new
            new.commit()
        except BaseException:
            new.remove()
            raise
        finally:
            with suppress(OSError):
                os.close(new.fd)


@contextmanager
def new_file_or_output(path: Path, what: str, *, replace: bool | None = None) -> Iterator[NewFile]:
    """As `new_file`; if the path is OUTPUT, the complete file is copied to the standard output, which must
    not be a terminal (WrongOption). `what`: the file's contents, as a noun phrase."""
    if path != OUTPUT:
        with new_file(path, replace=replace) as new:
            yield new
        return
    if sys.stdout.isatty():
        raise WrongOption(what=f"{what} is not for a terminal", todo="redirect it, or give a file's name")
    with tempfile.TemporaryDirectory(prefix="polyvol-") as directory:
        made = Path(directory) / "output"
        with new_file(made) as new:
            yield new
        with file_errors(OUTPUT_NAME), made.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def refuse_own_files(path: Path) -> None:
    """TransferFailed if a file at this path would be among those of a state directory."""
    if path == OUTPUT:
        return
    state = state_dir_of(path)
    if state is not None:
        why = f"it would be among polyvold's own files in {state}"
        raise TransferFailed(what=f"writing {path}", why=why, todo="give a path elsewhere")


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """OSError as TransferFailed: writing this file failed."""
    try:
        yield
    except OSError as error:
        raise TransferFailed.of(f"writing {path}", error, path) from error


class _Signalled(BaseException):
    """A signal that ends the process after a cleanup."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like an error, so that it is cleaned up, and then the process as
    usual; a second one ends the process at once. For the main thread."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Signalled(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, interrupt)
        yield
    except _Signalled as error:
        os.kill(os.getpid(), error.number)  # its action is now the default
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _rename(source: Path, target: Path) -> None:
    """Rename; FileExistsError if the target exists."""
    call = getattr(_libc, "renameat2", None)
    if call is not None:
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE) == 0:
            return
        failure = ctypes.get_errno()
        if failure not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(failure, os.strerror(failure))
    if os.path.lexists(target):  # a file system without RENAME_NOREPLACE
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    source.rename(target)
