"""points: the statements of a service that change something, counted, and killed or failed at one of them.

How it works      `install` replaces what the catalog (SQLite), the engine's border and the operating system
                  are asked by, for this process. Each call that changes something is a point; while `POINTS`
                  is armed, the points of the thread that armed it, and of the background threads that are
                  named in THREADS, are counted from 1. At the one that was asked for the process ends at
                  once, as by SIGKILL, or the call fails with an error of its kind, and is not made.
Limits            What the engine does within a call is not seen: recorder.c counts its system calls.
"""

import errno
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from polyvol.daemon.engine_border import EngineLike, EngineModule, load_engine
from polyvol.mapping import fallocate

Way = Literal["count", "kill", "error", "errors", "defect"]
"""Count only; end the process; fail this one call; fail all from it on; have the catalog or the engine raise
what nobody expects."""
KILLED = 9
"""The exit code of a process that was ended at a point."""
THREADS = ("polyvol-deletions", "polyvol-scrub", "polyvol-drop", "polyvol-serve", "ThreadPoolExecutor")
OS_CALLS = (
    *("unlink", "ftruncate", "pwrite", "fsync", "posix_fallocate", "setxattr", "removexattr", "mkdir"),
    *("rmdir", "rename", "replace", "link"),
)
ENGINE_CALLS = {
    *("grow_processors", "open_device", "absent_device", "reopen_device", "close_device", "add_volume"),
    *(
        "grow_volume",
        "rename_volume",
        "remove_volume",
        "add_log",
        "ask_when_full",
        "drop_snapshot",
        "drop_snapshots",
        "export",
    ),
    *("export_hidden", "unexport", "disconnect", "cut", "settle", "flush", "roll_back", "checkpoint"),
    *("cover_rollbacks", "forget_rollback", "scrub"),
}


class Defect(Exception):
    """What nobody expects."""


@dataclass
class Points:
    """Counts points. `at`: the one at which `way` happens; `names`: what was counted."""

    way: Way = "count"
    at: int = 0
    count: int = 0
    hit: bool = False
    names: list[str] = field(default_factory=list)
    _thread: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, way: Way, at: int = 0) -> None:
        """Count from 1 again, from now on."""
        self.way, self.at, self.count, self.hit, self.names = way, at, 0, False, []
        self._thread = threading.get_ident()

    def disarm(self) -> None:
        """Count no more."""
        self._thread = 0

    def passed(self, name: str, error: Callable[[], Exception]) -> None:
        """A call is about to be made; what it raises if it is to fail."""
        here = threading.current_thread()
        if not self._thread or not (here.ident == self._thread or here.name.startswith(THREADS)):
            return
        with self._lock:
            self.count += 1
            self.names.append(name)
            now = self.count == self.at or (self.way == "errors" and 0 < self.at <= self.count)
            self.hit |= now
        if not now:
            return
        if self.way == "kill":
            os._exit(KILLED)
        if self.way == "defect" and not name.startswith("os: "):
            raise Defect(name)
        if self.way in ("error", "errors"):
            raise error()


POINTS = Points()


def _io(name: str) -> Callable[[], Exception]:
    return lambda: OSError(errno.EIO, os.strerror(errno.EIO), name)


class _Connection(sqlite3.Connection):
    """A connection whose statements that change something are points; ROLLBACK always works."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        _statement(sql)
        return super().execute(sql, *arguments)

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        _statement(sql)
        return super().executemany(sql, *arguments)


def _statement(sql: str) -> None:
    words = sql.split(None, 1)[0].upper()
    if words not in ("SELECT", "ROLLBACK", "PRAGMA"):
        POINTS.passed(
            f"sql: {' '.join(sql.split())[:60]}", lambda: sqlite3.OperationalError("disk I/O error")
        )


class Engine:
    """An engine whose calls that change something are points."""

    def __init__(self, engine: EngineLike, error: type[Exception]) -> None:
        self._engine = engine
        self._error = error

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._engine, name)
        if name not in ENGINE_CALLS:
            return call

        def passed(*arguments: object, **named: object) -> object:
            POINTS.passed(f"engine: {name}", self._failure)
            return call(*arguments, **named)

        return passed

    def _failure(self) -> Exception:
        error: Any = self._error("Input/output error (injected)")
        error.kind, error.errno = "io", errno.EIO
        return error  # type: ignore[no-any-return]


class Module:
    """The engine's module, with such engines."""

    def __init__(self) -> None:
        self._module: EngineModule = load_engine()
        self.EngineError = self._module.EngineError
        self.check = self._module.check
        self.__version__ = self._module.__version__
        self.next_log_lines = self._module.next_log_lines
        self.wake_log_readers = self._module.wake_log_readers

    def Engine(self, processors: int) -> EngineLike:  # noqa: N802 - the module's name for it
        """Start one."""
        engine: Any = Engine(self._module.Engine(processors), self._module.EngineError)
        return engine  # type: ignore[no-any-return]


def install() -> None:
    """Have this process pass the points."""
    connect = sqlite3.connect

    def connected(*arguments: Any, **named: Any) -> Any:
        return connect(*arguments, **{"factory": _Connection, **named})

    sqlite3.connect = connected
    for name in OS_CALLS:
        setattr(os, name, _wrapped(f"os: {name}", getattr(os, name)))
    fallocate.zero = _wrapped("os: zero", fallocate.zero)
    opened, temporary = os.open, tempfile.gettempdir()

    def open_(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_CREAT and not str(path).startswith(temporary):
            POINTS.passed(f"os: open {path!s:.60}", _io(str(path)))
        return opened(path, flags, *arguments, **named)

    os.open = open_


def _wrapped(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def passed(*arguments: Any, **named: Any) -> Any:
        POINTS.passed(what, _io(what))
        return call(*arguments, **named)

    return passed
