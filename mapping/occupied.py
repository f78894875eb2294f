"""What is on a disk, and who uses it: asked before a disk is taken, so that nothing is taken from anybody.

How it works      Mounts from /proc/self/mountinfo, swap from /proc/swaps, what is built on a disk (LVM, RAID,
                  device mapper, bcache) from its `holders` in sysfs, and last an exclusive open, which fails
                  for all of these and for what else asks for a disk alone. Signatures (file systems,
                  partition tables, members of LVM and RAID) by `wipefs`, which has libblkid's list and knows
                  those at the end of a disk too.
Errors            DeviceUnusable where wipefs cannot be had or fails. What goes away meanwhile is not there.
"""

import contextlib
import errno
import json
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from polyvol.mapping.errors import DeviceUnusable

SYSFS = Path("/sys/class/block")
MOUNTS = Path("/proc/self/mountinfo")
SWAPS = Path("/proc/swaps")
WIPEFS_S = 60.0
USAGES = {
    "filesystem": "an {type} file system",
    "raid": "a member of RAID or LVM ({type})",
    "crypto": "encrypted data ({type})",
    "partition-table": "a partition table ({type})",
}
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
        found.append(Mount(fields[2], _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])))
    return found


def use_of(name: str) -> str | None:
    """Who uses a disk such as 'sda', or a partition of it, as a clause; None if nobody does."""
    parts = {}
    for path in (SYSFS / name, *(SYSFS / name).glob(f"{name}*")):
        with contextlib.suppress(OSError):
            parts[(path / "dev").read_text().strip()] = path
    for mount in mounts():
        if mount.numbers in parts:
            return f"mounted at {mount.point}"
    names = {path.name for path in parts.values()}
    with contextlib.suppress(OSError):
        for line in SWAPS.read_text().splitlines()[1:]:
            if Path(line.split()[0]).name in names:
                return "used as swap"
    for path in parts.values():
        with contextlib.suppress(OSError):
            for holder in sorted((path / "holders").iterdir()):
                return f"part of {holder_name(holder)}"
    return None


def disk_use(path: Path) -> str | None:
    """Who uses the disk at this path, as a clause; None if nobody does, or it is no disk."""
    name = disk_name(path)
    if name is None:
        return None
    use = use_of(name)
    if use is None:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return "in use by a program that has it for itself"
    return use


def disk_name(path: Path) -> str | None:
    """The kernel's name of the disk at this path, such as 'sda1'; None if it is no disk."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return Path(os.path.realpath(f"/sys/dev/block/{numbers}")).name


def contents_of(path: Path) -> str | None:
    """What the disk at this path has on it, by its signatures, as a noun phrase; None if nothing known."""
    options = ("--no-act", "--json", "--output", "TYPE,USAGE")
    said = _wipefs(path, *options)
    try:
        signatures = json.loads(said or "{}").get("signatures", [])
        phrases = [USAGES.get(each["usage"], "{type} data").format(type=each["type"]) for each in signatures]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceUnusable(path=path, why=f"wipefs gave an answer that cannot be read: {error}") from error
    if not phrases:
        return None
    # A file system's more exact than the table that its first sector looks like to some.
    phrases.sort(key=lambda phrase: "partition table" in phrase)
    return " and ".join(dict.fromkeys(phrases))


def clear_signatures(path: Path) -> None:
    """Take all signatures off a disk, so that nobody takes it for what it was; nothing else is changed."""
    _wipefs(path, "--all", "--quiet")


def holder_name(holder: Path) -> str:
    """The name of what is built on a disk, for people; `holder` is in sysfs."""
    with contextlib.suppress(OSError):
        return (holder / "dm/name").read_text().strip()
    return holder.name


def _wipefs(path: Path, *options: str) -> str:
    command = ["wipefs", *options, "--", os.fspath(path)]
    # Debian's users, and so polyvold's, need not have sbin in their PATH.
    env = {"PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '')}", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=WIPEFS_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else "it took too long"
        raise DeviceUnusable(path=path, why=f"wipefs could not look at it ({why})") from error
    if done.returncode != 0:
        raise DeviceUnusable(path=path, why=f"wipefs failed ({done.stderr.strip()})")
    return done.stdout
