"""Users and contents of a disk or file: checked before polyvold uses it, so that no other user loses it.

How it works      `open_free` opens and holds a file or disk (opening.py), and names its holder if that fails.
                  Of a disk: mounts from /proc/self/mountinfo, swap from /proc/swaps, what is built on it
                  (LVM, RAID, device mapper, bcache) from its `holders` in sysfs. Of a file: loop devices
                  over it, from sysfs, and swap. Signatures (file systems, partition tables, members of LVM
                  and RAID) by `wipefs`, which has libblkid's list and knows those at the end of a disk too;
                  it is given our descriptor, not the path.
Errors            DiskInUse; DeviceUnusable where wipefs is not installed or fails. A disk that disappears
                  during the check counts as absent.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polyvol.mapping.errors import DeviceUnusable, DiskInUse
from polyvol.mapping.opening import HeldByOther, Identity, OpenFile, identity_of, is_held, open_file
from polyvol.mapping.os_errors import reason
from polyvol.mapping.probes import Probes
from polyvol.mapping.programs import NotRun, run_program

SYSFS = Path("/sys/class/block")
MOUNTS = Path("/proc/self/mountinfo")
SWAPS = Path("/proc/swaps")
HELD = "in use by another program, which holds it exclusively"
WIPEFS_S = 60.0
POLL_S = 0.02
_BLKRRPART = 0x125F
USAGES = {
    "filesystem": "an {type} file system",
    "raid": "a member of RAID or LVM ({type})",
    "crypto": "encrypted data ({type})",
    "partition-table": "a partition table ({type})",
}
_probes = Probes()
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: the disk's numbers, such as '8:1', and where."""

    numbers: str
    point: str


def mounts(of: Path | None = None) -> list[Mount]:
    """All mounts that this process sees, or that another one does (`of`: its mountinfo)."""
    found = []
    for line in (of or MOUNTS).read_text(errors="replace").splitlines():
        fields = line.split(" ")
        found.append(Mount(fields[2], _unescaped(fields[4])))
    return found


def in_use_by(name: str) -> str | None:
    """Who uses a disk such as 'sda', or a partition of it, as a clause; None if nobody does."""
    parts = {}
    for path in (SYSFS / name, *_partitions(SYSFS / name)):
        with contextlib.suppress(OSError):
            parts[(path / "dev").read_text().strip()] = path
    for mount in mounts():
        if mount.numbers in parts:
            return f"mounted at {mount.point}"
    names = {path.name for path in parts.values()}
    for line in _swaps():
        if Path(line.split()[0]).name in names:
            return "used as swap"
    for path in parts.values():
        with contextlib.suppress(OSError):
            for holder in sorted((path / "holders").iterdir()):
                return f"part of {holder_name(holder)}"
    return None


def open_free(path: Path, *, until: float = 0.0, users: Mapping[Identity, str] | None = None) -> OpenFile:
    """Open and hold a file or disk that nobody uses; DiskInUse if somebody does. `until`: by the monotonic
    clock, how long to wait for a holder that cannot be named: it may be a process that is ending. `users`: of
    files, if they are known. FileNotFoundError if there is nothing."""
    while True:
        try:
            file = open_file(path)
        except HeldByOther as error:
            name = disk_name(path)
            use = None if name is None else in_use_by(name)
            if use is not None or time.monotonic() >= until:
                raise DiskInUse(path=path, use=use or HELD) from error
            time.sleep(POLL_S)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DeviceUnusable(path=path, why=reason(error)) from error
        else:
            use = (file_users() if users is None else users).get(file.identity)
            if use is None:
                return file
            file.close()
            raise DiskInUse(path=path, use=use)


def in_use_by_open(file: OpenFile) -> str | None:
    """Who else uses an open file or disk, as a clause; None if nobody is known to."""
    disk = file.kind == "block"
    use = in_use_by(_name_of(file.identity[1])) if disk else file_users().get(file.identity)
    return HELD if use is None and is_held(file.fd) else use


def file_users() -> dict[Identity, str]:
    """The files that the kernel uses, each with who uses it, as a clause. Locks are not looked at."""
    users = {backing: f"the file of {loop}" for loop, backing in _loops().items()}
    for line in _swaps():
        fields = line.split()
        identity = identity_of(Path(_unescaped(fields[0]))) if fields[1:2] == ["file"] else None
        if identity is not None:
            users[identity] = "used as swap"
    return users


def _swaps() -> list[str]:
    """The lines of /proc/swaps; DeviceUnusable if they cannot be read: then nobody knows what is in use."""
    try:
        return SWAPS.read_text().splitlines()[1:]
    except FileNotFoundError:
        return []  # a kernel without swap
    except OSError as error:
        raise DeviceUnusable(path=SWAPS, why=reason(error)) from error


def _loops() -> dict[str, Identity]:
    """The file or disk that each loop device is over, by the loop device's name."""
    questions = {}
    for path in SYSFS.glob("loop*"):
        with contextlib.suppress(OSError):
            backing = Path((path / "loop/backing_file").read_text().removesuffix("\n"))
            questions[path.name, backing] = partial(identity_of, backing)
    # One over a file system that hangs is left out: nobody can open that file now.
    return {loop: found for (loop, _), found in _probes.ask(questions).items() if found is not None}


def _partitions(disk: Path) -> list[Path]:
    """Its partitions in sysfs; none if it has disappeared."""
    with contextlib.suppress(OSError):
        return list(disk.glob(f"{disk.name}*"))
    return []


def same_storage(identity: Identity) -> set[Identity]:
    """All that has bytes in common with a file or disk: a disk and its partitions, a loop device and its
    file."""
    found = {identity}
    if identity[0] == 0:
        name = _name_of(identity[1])
        found |= {backing for loop, backing in _loops().items() if loop == name}
        disk = Path(os.path.realpath(SYSFS / name))
        if (disk / "partition").exists():
            disk = disk.parent
            found |= _numbers(disk)
        else:
            for part in _partitions(disk):
                found |= _numbers(part)
    found |= {
        number for loop, backing in _loops().items() if backing in found for number in _numbers(SYSFS / loop)
    }
    return found


def _numbers(disk: Path) -> set[Identity]:
    with contextlib.suppress(OSError, ValueError):
        major, minor = (disk / "dev").read_text().strip().split(":")
        return {(0, os.makedev(int(major), int(minor)))}
    return set()


def disk_name(path: Path) -> str | None:
    """The kernel's name of the disk at this path, such as 'sda1'; None if it is no disk."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _name_of(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None


def _name_of(number: int) -> str:
    return Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")).name


def contents_of(file: OpenFile) -> str | None:
    """What a disk or file has on it, by its signatures, as a noun phrase; None if nothing known."""
    options = ("--no-act", "--json", "--output", "TYPE,USAGE")
    said = _wipefs(file, *options)
    try:
        signatures = json.loads(said or "{}").get("signatures", [])
        phrases = [USAGES.get(each["usage"], "{type} data").format(type=each["type"]) for each in signatures]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceUnusable(
            path=file.path, why=f"wipefs gave an answer that cannot be read: {error}"
        ) from error
    if not phrases:
        return None
    # A file system's more exact than the table that its first sector looks like to some.
    phrases.sort(key=lambda phrase: "partition table" in phrase)
    return " and ".join(dict.fromkeys(phrases))


def contents_of_file(file: OpenFile) -> str | None:
    """As `contents_of` of a file, and None also where it cannot be looked at; None for a disk, which has been
    looked at."""
    if file.kind == "block":
        return None
    with contextlib.suppress(DeviceUnusable):
        return contents_of(file)
    return None


def clear_signatures(file: OpenFile) -> None:
    """Take all signatures off a disk, so that nobody takes it for what it was; nothing else is changed."""
    _wipefs(file, "--all", "--quiet", "--force")  # by force, because this process holds the disk
    with contextlib.suppress(OSError):  # not every disk has partitions
        fcntl.ioctl(file.fd, _BLKRRPART)


def holder_name(holder: Path) -> str:
    """The name of what is built on a disk, for people; `holder` is in sysfs."""
    with contextlib.suppress(OSError):
        return (holder / "dm/name").read_text().strip()
    return holder.name


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), text)


def _wipefs(file: OpenFile, *options: str) -> str:
    path = file.path
    command = ["wipefs", *options, "--", file.proc_path]
    # Debian's users, and so polyvold's, need not have sbin in their PATH.
    env = {"PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '')}", "LC_ALL": "C"}
    try:
        done = run_program(command, timeout_s=WIPEFS_S, env=env, pass_fds=(file.fd,))
    except NotRun as error:
        raise DeviceUnusable(path=path, why=f"wipefs could not look at it ({error})") from error
    if done.returncode != 0:
        raise DeviceUnusable(path=path, why=f"wipefs failed ({done.stderr.strip()})")
    return done.stdout
