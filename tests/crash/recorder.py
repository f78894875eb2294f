"""recorder: the preloaded library of recorder.c: building it, starting programs with it, reading its log.

How it works      `library` compiles it once into build/crash. A program is recorded by the environment that
                  `environment` gives; a process that was started with `preloaded` may record itself, and fail
                  its own calls, through `Control`. `read_log` gives the records in the order of their
                  effects.
Errors            AssertionError where the log ends in the middle of a record that is not the last.
"""

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tests.support.proc import check

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("recorder.c")
BUILD = ROOT / "build" / "crash"
HEADER = struct.Struct("<BBHIQQII")

SMALL = {
    "POLYVOL_SEGMENT_BYTES": str(64 << 10),
    "POLYVOL_CHECKPOINT_BYTES": str(8 << 10),
    "POLYVOL_RELOCATION_LOOK_S": "0.02",
    **{name: value for name, value in os.environ.items() if name == "POLYVOL_BUG"},
}
"""Segments and checkpoints so small, and looks for blocks to relocate so often, that short runs have many.
And the deliberate bug, if the engine was built for one."""


class Kind(IntEnum):
    """What a record says; see recorder.c."""

    KNOWN = 1
    CREATE = 2
    WRITE = 3
    TRUNCATE = 4
    ZERO = 5
    ALLOCATE = 6
    SYNC_BEGIN = 7
    SYNC_END = 8
    RENAME = 9
    UNLINK = 10
    MKDIR = 11
    RMDIR = 12


class Record(NamedTuple):
    """One record. `at` is where it begins in the log, bytes; `flag` and the others as in recorder.c."""

    at: int
    kind: int
    flag: int
    file: int
    offset: int
    length: int
    token: int
    payload: bytes

    @property
    def paths(self) -> list[str]:
        """The paths in it, from the root on."""
        return [os.fsdecode(path) for path in self.payload.split(b"\0")[:-1]]


def library() -> Path:
    """The library, compiled if its source is newer."""
    BUILD.mkdir(parents=True, exist_ok=True)
    built = BUILD / "recorder.so"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
            new = built.with_suffix(".new")
            check("cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", "-o", new, SOURCE)
            new.replace(built)
    return built


def environment(root: Path, log: Path, *, sync_us: int = 0, goes_on: int = 0) -> dict[str, str]:
    """For a program that is to be recorded from its start. `sync_us`: how much longer each sync takes.
    `goes_on`: the log is an earlier process's that was killed, and goes on for the so-manieth time."""
    return {
        "LD_PRELOAD": str(library()),
        "RECORDER_ROOT": str(root),
        "RECORDER_LOG": str(log),
        "RECORDER_SYNC_US": str(sync_us),
        "RECORDER_GOES_ON": str(goes_on),
        **SMALL,
    }


def preloaded(boot_id: Path) -> dict[str, str]:
    """For a program that uses `Control`; it reads the host's boot id from this file."""
    return {"LD_PRELOAD": str(library()), "RECORDER_BOOT_ID": str(boot_id), **SMALL}


def delayed(root: Path, kind: str, us: int, part: str = "", every: int = 1) -> dict[str, str]:
    """For a program in which each `every`-th call of a kind ("any": of all but reads), on paths below `root`
    that contain `part`, begins so many microseconds later."""
    return {
        "LD_PRELOAD": str(library()),
        "RECORDER_ROOT": str(root),
        "RECORDER_DELAY": f"{kind} {us} {every} {part}",
    }


class Calls:
    """Counts the calls that a program makes below `root`, all but reads, and kills it before one of them."""

    def __init__(self, root: Path, path: Path) -> None:
        path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self._words = memoryview(self._map).cast("q")
        self.environment = {
            "LD_PRELOAD": str(library()),
            "RECORDER_ROOT": str(root),
            "RECORDER_KILL": str(path),
        }

    @property
    def count(self) -> int:
        """How many calls there were."""
        return int(self._words[0])

    def kill_at(self, number: int) -> None:
        """Have the program killed before this one; 0: never."""
        self._words[1] = number

    def begin(self) -> None:
        """Count from 0 again, and kill nobody."""
        self._words[1] = self._words[0] = 0


class Control:
    """The library's switches, in a process that has it preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.recorder_counted.restype = ctypes.c_long
        self._library.recorder_fault.argtypes = [
            ctypes.c_char_p,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
        ]

    def begin(self, root: Path, log: Path | None) -> None:
        """Record what happens below `root`; without a log, only fail calls there."""
        self._library.recorder_begin(os.fsencode(root), b"" if log is None else os.fsencode(log))

    def end(self) -> None:
        """Record no more."""
        self._library.recorder_end()

    def fail(self, kind: str, at: int, error: int, *, ever: bool = False, part: str = "") -> None:
        """Fail the `at`-th call of this kind from now on paths that contain `part`; `ever`: all after it too.
        0: fail none."""
        self._library.recorder_fault(kind.encode(), at, error, ever, part.encode())

    def counted(self) -> int:
        """How many calls of the kind there were since `fail`."""
        return int(self._library.recorder_counted())


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log; the last one may be cut off, as its process may have been killed."""
    data = path.read_bytes()
    at = 0
    while at + HEADER.size <= len(data):
        kind, flag, _, file, offset, length, payload, token = HEADER.unpack_from(data, at)
        begin = at + HEADER.size
        if begin + payload > len(data):
            return
        yield Record(at, kind, flag, file, offset, length, token, data[begin : begin + payload])
        at = begin + payload


def cut_off(path: Path) -> None:
    """Take away the half of a record that a killed process has left at the end of a log."""
    end = max((record.at + HEADER.size + len(record.payload) for record in read_log(path)), default=0)
    os.truncate(path, end)
