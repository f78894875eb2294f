"""The state directory: where it is, and who owns it.

How it works      `catalog.db`, `lock`, `control.sock`, `nbd.sock`, `devices/` (files made for volumes),
                  `volumes/` and `manifests/` (one directory a volume, the engine's), `reserve`,
                  `reserve.journals` and `reserve.N` (reserve.py). The owner holds an flock on `lock`, which
                  ends with the process however it ends, and has written its pid there for others to read. A
                  new state directory is refused, untouched, if it lies inside another one or has files of
                  others.
Errors            StateLocked, StateOpen, StateUnusable, StateFull, DeviceUnusable.
"""

import contextlib
import errno
import fcntl
import fnmatch
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from polyvol.daemon.errors import StateLocked, StateUnusable
from polyvol.daemon.state.rights import OTHER_STATE, refuse_open_to_others
from polyvol.mapping import occupied
from polyvol.mapping.durable import sync_directory
from polyvol.mapping.errors import DeviceUnusable, PolyvolError, StateFull
from polyvol.mapping.no_space import NEEDED, is_no_space
from polyvol.mapping.opening import identity_of, matching
from polyvol.mapping.os_errors import advice, reason

OWN = ("catalog.db*", "catalog.mark*", "lock", "reserve*", "volumes", "manifests")
"""What polyvold keeps for itself there, as patterns of names."""
_MAY_BE_THERE = (*OWN, "devices", "control.sock*", "nbd.sock*", "lost+found", ".*")
"""Patterns of names that a directory may have when it becomes a state directory. Dot files, because it may be
a user's home."""
ENDING_S = 10.0
"""How long a holder of the lock that is ending is waited for."""
_POLL_S = 0.02
_PF_EXITING = 4
DEFAULT_STATE_DIR = "/var/lib/polyvol"


def default_state_dir() -> Path:
    """$POLYVOL_STATE, else /var/lib/polyvol."""
    return Path(os.environ.get("POLYVOL_STATE") or DEFAULT_STATE_DIR)


def control_socket(state_dir: Path) -> Path:
    """Where the control API is."""
    return state_dir / "control.sock"


def nbd_socket(state_dir: Path) -> Path:
    """Where NBD is, unless another path is asked for."""
    return state_dir / "nbd.sock"


def make_state_dir(state_dir: Path) -> None:
    """Make the directory and what belongs in it, where missing, durably. StateOpen if others can write to
    it, StateUnusable if it is a directory for something else."""
    refuse_open_to_others(state_dir, (*OWN, "volumes/*", "manifests/*", "devices"))
    _refuse_wrong_place(state_dir)
    try:
        above = state_dir.parent
        while not above.exists():
            above = above.parent
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("devices", "volumes", "manifests"):
            (state_dir / name).mkdir(mode=0o700, exist_ok=True)
        sync_directory(state_dir)
        for directory in state_dir.parents:
            with contextlib.suppress(PermissionError):  # then it was there before us
                sync_directory(directory)
            if directory == above:
                break
    except FileExistsError as error:
        raise StateUnusable(state=state_dir, why="it is not a directory", todo=OTHER_STATE) from error
    except OSError as error:
        raise unusable(state_dir, error) from error


def _refuse_wrong_place(state_dir: Path) -> None:
    """StateUnusable if the directory lies inside a state directory, or is one of something else."""
    real = Path(os.path.realpath(state_dir))
    for parent in dict.fromkeys((*state_dir.parents, *real.parents)):
        if _is_state_dir(parent):
            raise StateUnusable(
                state=state_dir,
                why=f"it lies inside {parent}, which is the state directory of a polyvold",
                todo="give --state-dir a directory outside of that",
            )
    if _is_state_dir(real) or os.path.lexists(real / "catalog.db"):
        return
    try:
        names = sorted(path.name for path in real.iterdir()) if real.exists() else []
    except OSError as error:
        raise unusable(state_dir, error) from error
    for name in names:
        if not any(fnmatch.fnmatchcase(name, each) for each in _MAY_BE_THERE):
            raise StateUnusable(
                state=state_dir,
                why=f"it has no catalog, and other files, such as {name!r}",
                todo="give --state-dir the directory of a polyvold, or an empty or new one",
            )


def state_dir_of(path: Path) -> Path | None:
    """The state directory that would take a file at this path for one of its own; None if none would."""
    real = Path(os.path.realpath(path))
    for parent in real.parents:
        name = real.relative_to(parent).parts[0]
        ours = name == "devices" or any(fnmatch.fnmatchcase(name, each) for each in OWN)
        if ours and _is_state_dir(parent):
            return parent
    return None


def _is_state_dir(directory: Path) -> bool:
    """Whether a polyvold has used it, also if its catalog is lost. A catalog alone is a backup of one."""
    found = [os.path.lexists(directory / name) for name in ("volumes", "manifests", "lock")]
    return all(found) or (any(found) and os.path.lexists(directory / "catalog.db"))


def unusable(state_dir: Path, error: OSError) -> PolyvolError:
    """The error to raise for one that a call on the state directory has met."""
    if is_no_space(error):
        return StateFull(path=state_dir, what="the files of a start cannot be made", need=NEEDED)
    todo = advice(error, OTHER_STATE) if isinstance(error, PermissionError) else OTHER_STATE
    if error.errno in (errno.EROFS, errno.EIO):
        todo = (
            f"see the kernel's log (`dmesg`) for errors of its disk and mount it read-write, or {OTHER_STATE}"
        )
    return StateUnusable(state=state_dir, why=reason(error, state_dir), todo=todo)


def refuse_own(state_dir: Path, path: Path) -> None:
    """DeviceUnusable if a path is one of polyvold's own files, by whatever name or loop device, or would be
    made among them. Nothing is opened: closing the catalog would end SQLite's locks on it."""
    real = Path(os.path.realpath(path))
    own = set(_own_inodes(state_dir)) - {None}
    identity = identity_of(real)
    inside = any(_inode(parent) in own for parent in real.parents)
    named = _inode(real.parent) == _inode(state_dir) and any(fnmatch.fnmatch(real.name, each) for each in OWN)
    if inside or named or (identity is not None and not own.isdisjoint(occupied.same_storage(identity))):
        raise DeviceUnusable(path=path, why=f"it is part of polyvold's own state in {state_dir}")


def _own_inodes(state_dir: Path) -> Iterator[tuple[int, int] | None]:
    for pattern in OWN:
        for path in matching(state_dir, pattern):
            yield _inode(path)
            for directory, names, files in os.walk(path):  # it skips what disappears
                yield from (_inode(Path(directory, name)) for name in (*names, *files))


def _inode(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def boot_id() -> str:
    """Another one after each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class StateLock:
    """The lock of a state directory; StateLocked if another process has it.

    `held`: a descriptor of the lock that another process has taken and passed on; the lock ends when both
    have released it. A holder that is ending, as after SIGKILL, is waited for."""

    def __init__(self, state_dir: Path, held: int | None = None) -> None:
        path = state_dir / "lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if held is None else held
        except OSError as error:
            raise unusable(state_dir, error) from error
        deadline = time.monotonic() + ENDING_S
        while not self._taken():
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            if time.monotonic() >= deadline or not _is_ending(pid):
                os.close(self._fd)
                raise StateLocked(pid=pid or "unknown", state=state_dir)
            time.sleep(_POLL_S)
        self.sign()

    def sign(self) -> None:
        """Write the pid of this process into the lock, for others to read."""
        with contextlib.suppress(OSError):  # the pid is for people; there may be no room for it
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def fileno(self) -> int:
        """The lock's descriptor, to be passed on."""
        return self._fd

    def release(self) -> None:
        """Release it; idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(
                OSError
            ):  # the pid in it is for people; the lock ends with the descriptor
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _is_ending(pid: str) -> bool:
    """Whether the process that holds the lock is gone, is ending, or has been sent SIGKILL."""
    if not pid.isdigit():
        return True  # it is just taking the lock, or has just released it
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return True
    pending = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd:", "ShdPnd:"))]
    killed = any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)
    return killed or stat[0] in "ZX" or bool(int(stat[6]) & _PF_EXITING)
