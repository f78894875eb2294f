"""The parts of a support bundle: what each is, and how it is collected.

How it works      A part is a file of the bundle, and a function that returns its text. The views of all
                  objects come from the control API; once polyvold has failed to answer, it is not asked
                  again. The rest is read from the host: the state directory's names and sizes, the process
                  below /proc, the journal, versions. `without_secrets` and `clean` remove what may be secret.
Invariants        BU1 no contents of volumes are read; BU2 no part has the environment of a process or a
                  setting of a hook; BU3 it does not start polyvold, and changes nothing.
Errors            Absent, whose text is a clause; the caller reports what else a part raises.
"""

import json
import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from polyvol.daemon.client.cli.client import ApiError, Client, Json
from polyvol.daemon.client.cli.unreachable import UNIT, may_run
from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable
from polyvol.daemon.version import version_text
from polyvol.mapping.os_errors import reason
from polyvol.mapping.programs import NotRun, run_program

LEFT_OUT = "(left-out)"
CONFIG = Path("/etc/polyvol/polyvold.toml")
JOURNAL_LINES = 5000
ENTRIES_MAX = 20_000
"""How many files of the state directory are listed."""
_HOOKS = ("quiesce", "thaw")
_SECRET = re.compile(
    r"password|passwd|passphrase|\bpass\b|pwd|secret|token|credential|private|authorization"
    r"|(?:api|access)[-_ ]?key",
    re.IGNORECASE,
)
_VALUE = r"""(?:"(?:[^"\\\n]|\\.)*(?:"|$)|'(?:[^'\\\n]|\\.)*(?:'|$)|[^\s'",;]+)"""
"""A word, or words in quotes; the second quote may be cut off with the rest of the line."""
_KEY = rf"(?:{_SECRET.pattern})[\w-]*"
_FLAGS = re.IGNORECASE | re.MULTILINE
_IN_TEXT = (
    re.compile(r"((?<=://))([^/@\s'\"]+)(?=@)"),
    re.compile(rf"({_KEY}\\?['\"]?\s*[=:]\s*\\?(?:(?:bearer|basic)\s+)?)({_VALUE})", _FLAGS),
    re.compile(rf"(--[\w-]*{_KEY}\s+)(?!-)({_VALUE})", _FLAGS),
    re.compile(r"(\bbearer\s+)([^\s'\",;]+)", _FLAGS),
)
"""What comes before a secret, and the secret."""
_PACKAGES = (
    "polyvol", "python3", "python3-libnbd", "python3-pyudev", "python3-crcmod", "python3-systemd", "libnbd0",
    "libnbd-bin", "nbd-client", "nbdkit", "nbdkit-plugin-python", "fuse3", "qemu-utils", "systemd",
)  # fmt: skip
_MODULES = (
    "click",
    "crc32c",
    "crcmod",
    "cronsim",
    "pydantic",
    "pyroute2",
    "pyudev",
    "rich",
    "waitress",
    "zstandard",
)
_UNITS = (UNIT, "polyvold.socket", "polyvold-control.socket")
_UNIT_FACTS = (
    "Id", "LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "ExecMainStartTimestamp",
    "NRestarts", "MemoryCurrent", "TasksCurrent", "LimitNOFILE", "FragmentPath", "DropInPaths",
    "NeedDaemonReload",
)  # fmt: skip
_SYSTEM_FILES = ("/etc/os-release", "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo")
_PROCESS_FILES = ("status", "limits", "io", "cgroup")
_KERNEL = re.compile(
    r"nbd|I/O error|blk_|ext4|xfs|btrfs|loop\d|blocked for more|oom|out of memory|polyvol", re.IGNORECASE
)


class Absent(Exception):
    """A part that is not available; the text says why, as a clause."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the bundle: its name, what it is, and its text, or the value that its JSON stands for."""

    name: str
    what: str
    collect: Callable[[], Json]


def parts(state_dir: Path, read_s: float) -> list[Part]:
    """All parts; an answer of polyvold may take `read_s` seconds."""
    asked = _Asked(state_dir, read_s)
    listed = [
        ("status", "the state of everything, with the latest events", ("status",)),
        ("devices", "the devices", ("devices",)),
        ("volumes", "the volumes, also deleted ones that clones need", ("volumes",)),
        ("snapshots", "the snapshots", ("snapshots",)),
        ("groups", "the groups", ("groups",)),
        ("schedules", "the schedules", ("schedules",)),
        ("scrub", "whether there are weekly scrubs", ("scrub",)),
        ("clients", "the clients", ("clients",)),
        ("debug-processors", "what each processor is at", ("debug", "processors")),
        ("debug-dump", "threads, locks and queues of polyvold", ("debug", "dump")),
    ]
    return [
        Part("version.txt", "the version of this polyvol", lambda: version_text("polyvol")),
        *(Part(f"{name}.json", what, asked.about(path)) for name, what, path in listed),
        Part(
            "catalog.json",
            "the catalog: its schema, how many rows, its check",
            lambda: _catalog(state_dir, read_s),
        ),
        Part("check.json", "polyvol check of a polyvold that does not run", lambda: _check(state_dir)),
        Part("config.json", "the settings", lambda: _config(state_dir)),
        Part("state-directory.txt", "names, sizes and times of its files", lambda: _listing(state_dir)),
        Part(
            "mounts.txt", "the file systems of the state directory and of devices", lambda: _mounts(state_dir)
        ),
        Part("process.txt", "the process of polyvold: limits, memory, threads", lambda: _process(state_dir)),
        Part(
            "unit.txt",
            "the systemd units",
            lambda: _ran("systemctl", "show", *_unit_options(), *_UNITS, s=read_s),
        ),
        Part("journal.txt", "the log of polyvold and of attached devices", lambda: _journal(read_s)),
        Part("kernel.txt", "lines of the kernel's log on disks and memory", lambda: _kernel(read_s)),
        Part("attached.json", "the devices attached on this host", _attached),
        Part("system.txt", "kernel, distribution, memory", _system),
        Part("packages.txt", "versions of packages", lambda: _versions(read_s)),
    ]


def without_secrets(value: Json) -> Json:
    """JSON without commands of hooks, without values whose keys say that they are secret, and with clean
    texts. These are cleaned as values: in written JSON, quotes are escaped."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {
            key: LEFT_OUT
            if each is not None and (key in _HOOKS or _SECRET.search(key))
            else without_secrets(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(each) for each in value]
    return value


def written(value: Json) -> str:
    """JSON as a text, without secrets."""
    return json.dumps(without_secrets(value), indent=1, default=str)


def clean(text: str) -> str:
    """A text without what looks like a password in it."""
    for pattern in _IN_TEXT:
        text = pattern.sub(_left_out, text)
    return text


def _left_out(found: re.Match[str]) -> str:
    quote = found[2][0] if found[2][0] in "'\"" else ""
    return f"{found[1]}{quote}{LEFT_OUT}{quote}"


class _Asked:
    """The control API, which is not asked again once polyvold has failed to answer."""

    def __init__(self, state_dir: Path, read_s: float) -> None:
        self._state_dir = state_dir
        self._client = Client(state_dir, read_s=read_s)
        self._down: str | None = None

    def about(self, path: Sequence[str]) -> Callable[[], Json]:
        """A function that asks for this path."""

        def ask() -> Json:
            if self._down is None and not may_run(self._state_dir):
                self._down = "polyvold does not run"
            if self._down is not None:
                raise Absent(self._down)
            self._down = "polyvold has not answered in time"  # if this takes too long
            try:
                query = {"kept": True} if path == ("volumes",) else {}
                answer = self._client.get(*path, **query)
            except ApiError as error:
                self._down = None
                missing = error.code == "no-such-page"
                raise Absent("this polyvold does not have it" if missing else error.message) from error
            except (DaemonNotRunning, DaemonUnreachable) as error:
                self._down = error.message
                raise Absent(error.message) from error
            self._down = None
            return answer

        return ask


def _catalog(state_dir: Path, read_s: float) -> Json:
    """What the catalog is like, without its rows."""
    import tempfile

    from polyvol.daemon.client.cli.catalog import copy_of_catalog
    from polyvol.mapping.catalog.examine import (
        content_problems,
        format_version,
        reading,
        reference_problems,
    )

    data, running = copy_of_catalog(state_dir, read_s)
    with tempfile.TemporaryDirectory(prefix="polyvol-support-") as directory:
        copy = Path(directory) / "catalog.db"
        copy.write_bytes(data)
        with reading(copy, copy) as connection:
            version = format_version(connection)
            problems = [*content_problems(copy, connection, version), *reference_problems(connection)]
            rows = connection.execute("SELECT name, type, sql FROM sqlite_master ORDER BY name").fetchall()
            tables = [name for name, kind, _ in rows if kind == "table"]
            counts = {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables
            }
            facts = dict(zip(("generation", "commits"), _counters(connection, version), strict=False))
    found = {"format": version, "bytes": len(data), "polyvold_runs": running, "problems": problems, **facts}
    return {**found, "rows": counts, "schema": [sql for _, _, sql in rows if sql]}


def _counters(connection: Json, version: int) -> tuple[int, ...]:
    if version < 4:
        return ()
    row: tuple[int, ...] = connection.execute("SELECT generation, commits FROM catalog").fetchone()
    return row


def _check(state_dir: Path) -> Json:
    from polyvol.daemon.check import check_state  # loads the engine

    if _pid(state_dir) is not None:
        raise Absent("polyvold runs")
    return asdict(check_state(state_dir.absolute(), data=False))


def _config(state_dir: Path) -> Json:
    """The settings as TOML has them, from the file that the process was started with."""
    pid = _pid(state_dir)
    command = _command(pid) if pid is not None else []
    named = [after for before, after in pairwise(command) if before == "--config"]
    named += [word.removeprefix("--config=") for word in command if word.startswith("--config=")]
    file = Path(named[-1]) if named else CONFIG
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        settings = None
    except (OSError, ValueError) as error:
        why = reason(error, file) if isinstance(error, OSError) else "it is not TOML in UTF-8"
        raise Absent(f"{file} cannot be read: {why}") from error
    return {"file": str(file), "settings": settings, "command": command}


def _pid(state_dir: Path) -> int | None:
    """The process that has written its pid into the lock, if it is there; others may have the number now.
    Absent if the lock cannot be read."""
    lock = state_dir / "lock"
    with suppress(FileNotFoundError, ValueError):
        try:
            pid = int(lock.read_text(encoding="ascii"))
        except PermissionError as error:
            raise Absent(f"{lock} cannot be read: {reason(error, lock)}") from error
        if any("polyvol" in word for word in _command(pid)):
            return pid
    return None


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="backslashreplace").split("\0")
        return [word for word in words if word]
    return []


def _listing(state_dir: Path) -> str:
    """One line for each file: mode, owner, size, allocated bytes, time of change in seconds, name."""
    if not state_dir.is_dir():
        raise Absent(f"there is no directory {state_dir}")
    lines = []
    for path in _below(state_dir):
        try:
            told = path.lstat()
        except OSError as error:
            lines.append(f"{path}: {reason(error)}")
            continue
        owner = f"{told.st_uid}:{told.st_gid}"
        sizes = f"{told.st_size} {told.st_blocks * 512}"
        lines.append(f"{told.st_mode:o} {owner} {sizes} {told.st_mtime_ns // 10**9} {path}")
    return "\n".join(lines)


def _below(directory: Path) -> Iterator[Path]:
    yield directory
    count = 0
    for where, directories, files in os.walk(directory):
        directories.sort()
        for name in (*sorted(directories), *sorted(files)):
            count += 1
            if count > ENTRIES_MAX:
                return
            yield Path(where, name)


def _mounts(state_dir: Path) -> str:
    """The mounts of the state directory and of disks, and how full the former is."""
    real = Path(os.path.realpath(state_dir))
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    points = {line: Path(line.split()[4]) for line in lines}
    wanted = [
        line
        for line, point in points.items()
        if real.is_relative_to(point) or line.split()[-2].startswith("/dev/")
    ]
    free = os.statvfs(real)
    space = {
        name: getattr(free, name)
        for name in ("f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")
    }
    return "\n".join([f"{real}: {space}", *wanted])


def _process(state_dir: Path) -> str:
    pid = _pid(state_dir)
    if pid is None:
        raise Absent("polyvold does not run")
    where = Path(f"/proc/{pid}")
    found = [f"pid {pid}: {' '.join(_command(pid))}"]
    found += [f"{name}:\n{_text(where / name)}" for name in _PROCESS_FILES]
    with suppress(OSError):
        found.append(f"open files: {len(list((where / 'fd').iterdir()))}")
    found.append("threads (id, name, state, where the kernel waits, system call):")
    for task in sorted((where / "task").iterdir()):
        stat = _text(task / "stat").rpartition(")")[2].split()
        call = _text(task / "syscall").split()
        words = (
            _text(task / "comm"),
            stat[0] if stat else "?",
            _text(task / "wchan"),
            call[0] if call else "?",
        )
        found.append(" ".join([task.name, *(word.strip() for word in words)]))
    return "\n".join(found)


def _text(path: Path) -> str:
    """A small file's text, or why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"({reason(error)})"


def _unit_options() -> list[str]:
    return ["--no-pager", f"--property={','.join(_UNIT_FACTS)}"]


def _journal(read_s: float) -> str:
    options = ["--no-pager", "--quiet", "-o", "short-iso-precise", "-n", str(JOURNAL_LINES)]
    text = _ran("journalctl", *options, "-u", UNIT, "-u", "polyvol-attach@*", s=read_s)
    if not text:
        raise Absent("the journal has no lines of polyvold that this user may read")
    return text


def _kernel(read_s: float) -> str:
    lines = _ran("dmesg", s=read_s).splitlines()
    return "\n".join([line for line in lines if _KERNEL.search(line)][-JOURNAL_LINES:])


def _ran(*command: str, s: float) -> str:
    """The output of a program; Absent if it fails."""
    try:
        done = run_program(command, timeout_s=s)
    except NotRun as error:
        raise Absent(f"{command[0]}: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise Absent(f"{command[0]} has failed: {said}")
    return done.stdout


def _attached() -> Json:
    from polyvol.daemon.client.attach import verbs  # loads netlink and udev
    from polyvol.daemon.client.attach.records import Places

    return [asdict(view) for view in verbs.list_all(Places.default())]


def _system() -> str:
    found = [f"{' '.join(platform.uname())}, {os.cpu_count()} cores, Python {sys.version}"]
    return "\n".join([*found, *(f"{name}:\n{_text(Path(name))}" for name in _SYSTEM_FILES)])


def _versions(read_s: float) -> str:
    import importlib.metadata

    lines = []
    for name in _MODULES:
        with suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{name} {importlib.metadata.version(name)} (Python)")
    with suppress(NotRun):
        done = run_program(["dpkg-query", "-W", *_PACKAGES], timeout_s=read_s)
        lines += done.stdout.splitlines()  # it fails if one of them is not installed
    return "\n".join(lines)
