"""Who uses a block device of this host: mounts, swap, what is built on it, and programs that have it open.

How it works      /proc and sysfs are read each time. Mounts are looked for in the mount namespaces of all
                  processes that this one may see, so that one in a container or in a service's private
                  namespace counts. A program that opens the device for a moment, as udev does, is looked at
                  again for OPEN_S before it counts.
Errors            Nothing raises where a process or a device has gone in the meantime.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from polyvol.mapping import occupied
from polyvol.mapping.os_errors import reason
from polyvol.mapping.programs import NotRun, run_program

PROC = Path("/proc")
SYSFS = Path("/sys/class/block")
OPEN_S = 2.0
POLL_S = 0.1
OPENERS_MAX = 3
RELEASE_S = 30.0


def users_of(device: str, *, patience_s: float = OPEN_S) -> list[str]:
    """Who uses a block device such as 'nbd0', or a partition of it: a clause each, such as 'mounted at
    /x'."""
    parts = _parts(device)
    found = [*_mounted(parts), *_swap(parts), *_held(parts), *_looped(parts)]
    if found:
        return found
    deadline = time.monotonic() + patience_s
    while (found := list(_open(parts))) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


def release(device: str) -> None:
    """Unmount a device wherever it is mounted in this mount namespace, and end its use as swap; what fails,
    because it is in use itself, is left."""
    parts = _parts(device)
    numbers = _numbers(parts)
    with contextlib.suppress(OSError):
        for mount in reversed(occupied.mounts(PROC / "self/mountinfo")):
            if mount.numbers in numbers:
                _run("umount", mount.point)
    with contextlib.suppress(OSError):  # as above
        for path in _swaps(parts):
            _run("swapoff", path)


def _run(*command: str | Path) -> None:
    with contextlib.suppress(NotRun):
        run_program(command, timeout_s=RELEASE_S)


def _parts(device: str) -> dict[int, Path]:
    """The device and its partitions: device number and place in sysfs."""
    parts = {}
    for path in (SYSFS / device, *sorted((SYSFS / device).glob(f"{device}*"))):
        with contextlib.suppress(OSError, ValueError):
            major, minor = (path / "dev").read_text().strip().split(":")
            parts[os.makedev(int(major), int(minor))] = path
    return parts


def _mounted(parts: dict[int, Path]) -> Iterator[str]:
    numbers = _numbers(parts)
    spaces: set[str] = set()
    points: set[str] = set()
    for process in [PROC / "self", *_processes()]:
        try:
            space = str((process / "ns/mnt").readlink())
            if space in spaces:
                continue
            spaces.add(space)
            mounts = occupied.mounts(process / "mountinfo")
        except OSError as error:
            if process.name == "self":
                yield _unknown(process / "mountinfo", error)
            continue  # it has ended
        for mount in mounts:
            if mount.numbers in numbers and mount.point not in points:
                points.add(mount.point)
                elsewhere = "" if process.name == "self" else f" in the mount namespace of {_who(process)}"
                yield f"mounted at {mount.point}{elsewhere}"


def _swap(parts: dict[int, Path]) -> Iterator[str]:
    try:
        yield from ("used as swap" for _ in _swaps(parts))
    except OSError as error:
        yield _unknown(PROC / "swaps", error)


def _swaps(parts: dict[int, Path]) -> Iterator[Path]:
    names = {path.name for path in parts.values()}
    with contextlib.suppress(FileNotFoundError):  # a kernel without swap
        for line in (PROC / "swaps").read_text().splitlines()[1:]:
            path = Path(line.split()[0])
            if path.name in names or _number(path) in parts:
                yield path


def _numbers(parts: dict[int, Path]) -> set[str]:
    return {f"{os.major(number)}:{os.minor(number)}" for number in parts}


def _held(parts: dict[int, Path]) -> Iterator[str]:
    for path in parts.values():
        try:
            for holder in sorted((path / "holders").iterdir()):
                yield f"part of {occupied.holder_name(holder)}"
        except FileNotFoundError:
            continue  # the device has gone
        except OSError as error:
            yield _unknown(path / "holders", error)


def _looped(parts: dict[int, Path]) -> Iterator[str]:
    for path in sorted(SYSFS.glob("loop*")):
        with contextlib.suppress(OSError):
            if _number(Path((path / "loop/backing_file").read_text().strip())) in parts:
                yield f"under /dev/{path.name}"


def _open(parts: dict[int, Path]) -> Iterator[str]:
    own, count = os.getpid(), 0
    for process in _processes():
        if int(process.name) == own or not _has_open(process, parts):
            continue
        count += 1
        if count <= OPENERS_MAX:
            yield f"open by {_who(process)}"


def _has_open(process: Path, parts: dict[int, Path]) -> bool:
    with contextlib.suppress(OSError):
        for file in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                # Only what can be a device is looked at more closely: a file on a dead server would hang.
                if "/dev/" in str(file.readlink()) and _number(file) in parts:
                    return True
    return False


def _number(path: Path) -> int | None:
    """The number of the block device at this path, or None."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev
    return None


def _unknown(path: Path, error: OSError) -> str:
    """That it is not known who uses a device: what cannot be looked at is no proof that nobody does."""
    return f"perhaps in use, because {path} cannot be read ({reason(error)})"


def _processes() -> list[Path]:
    return [path for path in PROC.iterdir() if path.name.isdecimal()]


def _who(process: Path) -> str:
    try:
        return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    except OSError:
        return f"process {process.name}"
