"""Threads: what the threads of this process are doing, by the kernel and by Python.

How it works      Files of /proc/self/task, which never wait for a device. Only root can read `stack`, and
                  `wchan` may be 0. Python's frames are those of one instant: file, line and function, without
                  values. Python holds a lock of its own while it lists them. A garbage collection within that
                  could run code, and let other threads run, which wait for that lock: nothing would ever end.
Errors            A thread that ends during the query is omitted; a file that cannot be read is empty.
"""

import gc
import os
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

from polyvol.daemon.debug.processors import TASKS, thread_name
from polyvol.daemon.types.debug import ThreadView

FRAMES_MAX = 100
_UTIME, _STIME = 11, 12
"""Fields of stat behind the name and the state."""


def thread_views() -> list[ThreadView]:
    """All threads, by number."""
    frames = _frames()
    python = {each.native_id: each for each in threading.enumerate() if each.native_id is not None}
    views = []
    for path in sorted(TASKS.iterdir(), key=lambda each: int(each.name)):
        number = int(path.name)
        name, stat = thread_name(number), _read(path / "stat")
        if name is None or stat is None:
            continue  # it has ended
        fields = stat.rpartition(")")[2].split()
        own = python.get(number)
        frame = None if own is None or own.ident is None else frames.get(own.ident)
        stack = [] if frame is None else traceback.extract_stack(frame, FRAMES_MAX)
        views.append(
            ThreadView(
                thread=number,
                name=name,
                state=fields[0],
                cpu_ticks=int(fields[_UTIME]) + int(fields[_STIME]),
                wchan=_read(path / "wchan"),
                kernel_stack=(_read(path / "stack") or "").splitlines(),
                python_name=None if own is None else own.name,
                frames=[f"{each.filename}:{each.lineno} {each.name}" for each in stack],
            )
        )
    return views


_collecting_frames = threading.Lock()


def _frames() -> dict[int, FrameType]:
    """The current frame of each thread, by its ident, collected while there is no garbage collection."""
    with _collecting_frames:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if enabled:
                gc.enable()


def native_id(ident: int) -> int | None:
    """The kernel's number of a thread of Python's."""
    return next((each.native_id for each in threading.enumerate() if each.ident == ident), None)


def descriptor_counts() -> dict[str, int]:
    """How many descriptors are open, by kind. Links are read and not followed: a file may hang."""
    counts: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue  # it was closed in between
        counts[_kind(target)] += 1
    return dict(sorted(counts.items()))


def process_facts() -> dict[str, str]:
    """Of the process and the machine."""
    machine = os.uname()
    facts = {
        "kernel": f"{machine.sysname} {machine.release} {machine.version} {machine.machine}",
        "python": sys.version,
        "cpus": str(os.cpu_count()),
    }
    wanted = ("VmPeak", "VmSize", "VmRSS", "VmSwap", "Threads", "FDSize", "NoNewPrivs", "Seccomp")
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        key, _, value = line.partition(":")
        if key in wanted:
            facts[key] = value.strip()
    for line in (_read(Path("/proc/self/limits")) or "").splitlines():
        if line.startswith(("Max open files", "Max locked memory", "Max processes")):
            facts[line[:25].strip()] = " ".join(line[25:].split())
    return facts


def _kind(target: str) -> str:
    if target.startswith("anon_inode:"):
        return target.removeprefix("anon_inode:").strip("[]")
    if target.startswith(("socket:", "pipe:")):
        return target.partition(":")[0]
    return "device" if target.startswith("/dev/") else "file"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
