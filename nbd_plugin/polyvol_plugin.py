"""polyvol_plugin: the callbacks of an nbdkit Python plugin that serves polyvol's volumes and snapshots.

By hand           nbdkit python nbd_plugin/polyvol_plugin.py state-dir=DIR
                  (with -f to stay in the foreground; `polyvold --frontend nbdkit` runs it for you).
                  Further parameters: processors=N, io-timeout=S, and nbd-address=URI, any number of times,
                  for what `polyvol status` should tell of the sockets that nbdkit was given. SIGHUP looks
                  again for missing devices; SIGTERM, SIGINT and SIGQUIT end nbdkit, and have its clients
                  leave. (polyvold passes descriptors too: control-fd, the control socket that systemd made;
                  lock-fd, the lock of the state directory; keeper-fd, the channel of keeper.py.)

How it works      nbdkit speaks NBD and calls one function here for each request; the function hands it to the
                  engine, which runs in this process together with the rest of polyvold, and waits without the
                  GIL. So nbdkit's filters can be used with polyvol, and the control socket works during
                  requests. The state directory is taken over after nbdkit has forked: threads do not survive
                  a fork.
Thread model      SERIALIZE_REQUESTS: one request at a time for each connection, connections side by side.
                  With SERIALIZE_ALL_REQUESTS an idle connection holds up all others; PARALLEL ends in an
                  assertion when a client leaves in mid-reply (both seen with nbdkit 1.32).
Errors            A failed callback sets the errno by `nbdkit.set_error` and raises; nbdkit logs it. If
                  polyvol cannot start, it prints one sentence on stderr, with exit code 1. nbdkit itself
                  refuses writes to a read-only export, because of `can_write`.
                  nbdkit 1.32 never frees what was raised. So an export that cannot be opened is opened as a
                  `Refused`, and nbdkit refuses it because its size is -1. A request that fails raises an
                  exception that was made before, without a traceback (`_with_errno`).
"""

import errno
import logging
import os
import site
import socket
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import nbdkit


def _make_importable() -> None:
    """Put the packages polyvol was installed with on sys.path, and leave out those of another Python.

    They are where PYTHONPATH says, else near this file: in the checkout's virtual environment, or (installed
    from a wheel) in the directory that has polyvol. Their .pth files count, which PYTHONPATH alone ignores:
    an editable install is one. The standard library, and the system's packages where the virtual environment
    uses them, are those of the Python that it was made from. nbdkit's own search begins with PATH, and finds
    the files of whatever Python is first on it.
    """
    here = Path(__file__).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    directories = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    directories += [here.parents[1] / ".venv" / "lib" / version / "site-packages", here.parents[2]]
    for directory in directories:
        if (directory / "polyvol").is_dir() or list(directory.glob("__editable__.polyvol-*.pth")):
            break
    else:
        return
    settings = directory.parents[2] / "pyvenv.cfg"
    home, shared = Path("/usr"), True
    if settings.exists():
        lines = (line.partition("=") for line in settings.read_text("utf-8").splitlines())
        values = {name.strip(): value.strip() for name, _, value in lines}
        home = Path(values["home"]).resolve().parent
        shared = values.get("include-system-site-packages") == "true"
    library = home / "lib" / version
    if not (library / "os.py").exists():
        raise ImportError(f"{directory} is not for nbdkit's Python {sys.version.split()[0]}")
    sys.path[:] = [str(library), str(library / "lib-dynload")]
    site.addsitedir(str(directory))
    system = [home / "local" / "lib" / version, home / "lib" / "python3", library]
    for packages in (each / name for each in system for name in ("dist-packages", "site-packages")):
        if shared and packages.is_dir():
            site.addsitedir(str(packages))


_make_importable()

from polyvol.daemon.config import IO_TIMEOUT_S  # noqa: E402
from polyvol.daemon.engine_border import HandleLike  # noqa: E402 - only now can they be found
from polyvol.daemon.host.notify import log_somewhere  # noqa: E402
from polyvol.engine import EngineError, RaisesReturned  # noqa: E402
from polyvol.mapping.errors import PolyvolError  # noqa: E402
from polyvol.mapping.os_errors import reason  # noqa: E402
from polyvol.nbd_plugin import disconnect  # noqa: E402
from polyvol.nbd_plugin.host import Host  # noqa: E402
from polyvol.nbd_plugin.keeper import Keeper, end_with_keeper  # noqa: E402

API_VERSION = 2
BLOCK_SIZE_MIN = 1
BLOCK_SIZE_PREFERRED = 4096
REQUEST_BYTES_MAX = 32 * 1024 * 1024
DESCRIPTORS = ("control-fd", "keeper-fd", "lock-fd")

P = ParamSpec("P")
R = TypeVar("R")

_state_dir: Path | None = None
_processors: int | None = None
_io_timeout_s = IO_TIMEOUT_S
_addresses: list[str] = []
_descriptors: dict[str, int] = {}
_host: Host | None = None
_log = logging.getLogger("polyvol")


class _Failures(dict[int, OSError]):
    """The exception to raise for each errno, made once."""

    def __missing__(self, number: int) -> OSError:
        return self.setdefault(number, OSError(number, os.strerror(number)))


_failures = _Failures()


def _with_errno(callback: Callable[P, R]) -> RaisesReturned:
    """What nbdkit calls for a request: tells it the errno of what the callback raises, and raises an
    exception that was made before, without a traceback, because nbdkit never frees either."""

    @wraps(callback)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | OSError:
        number = errno.EIO
        try:
            return callback(*args, **kwargs)
        except OSError as error:
            number = error.errno or errno.EIO
        except Exception:
            _log.exception("a request failed")
        nbdkit.set_error(number)
        return _failures[number]

    return RaisesReturned(wrapper)


def _refuse(sentence: str) -> NoReturn:
    """End nbdkit before it serves anything: raising would show a traceback instead of the sentence."""
    print(f"polyvol: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


def _running() -> Host:
    """The host, which nbdkit has started before any connection can be made."""
    if _host is None:
        raise OSError(errno.ESHUTDOWN, "polyvol is not running")
    return _host


# Life of the server.


def config(key: str, value: str) -> None:
    """Take a `key=value` of the command line."""
    global _state_dir, _processors, _io_timeout_s
    match key:
        case "state-dir":
            _state_dir = Path(value).absolute()
        case "processors" if value.isascii() and value.isdigit():
            _processors = int(value)
        case "io-timeout" if value.isascii() and value.isdigit():
            _io_timeout_s = int(value)
        case _ if key in DESCRIPTORS and value.isascii() and value.isdigit():
            _descriptors[key] = int(value)
            os.set_inheritable(int(value), False)  # not to hooks: they may outlive us
            if key == "keeper-fd":
                end_with_keeper(int(value))
        case "processors" | "io-timeout":
            _refuse(f"{key}={value} is not a number")
        case "nbd-address":
            _addresses.append(value)
        case _:
            known = "state-dir, processors, io-timeout and nbd-address"
            _refuse(f"there is no parameter '{key}': polyvol takes {known}")


def config_complete() -> None:
    """Refuse to start without a state directory."""
    if _state_dir is None:
        _refuse("no state directory is named: add state-dir=DIR to the command line")


def thread_model() -> int:
    """One request at a time for each connection."""
    model: int = nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
    return model


def after_fork() -> None:
    """Start polyvol, or end nbdkit."""
    global _host
    assert _state_dir is not None  # config_complete
    log_somewhere()
    control, lock, keeper = (_descriptors.get(name) for name in ("control-fd", "lock-fd", "keeper-fd"))
    channel = None if keeper is None else socket.socket(fileno=keeper)
    Keeper(channel, disconnect.listening(without=control), _reload).start()
    try:
        host = Host(_state_dir, _processors, _addresses, control, lock, _io_timeout_s)
        host.start()
    except OSError as error:
        _refuse(f"{_state_dir}: {reason(error)}")
    except (PolyvolError, EngineError) as error:
        _refuse(str(error))
    _host = host


def _reload(processors: int | None, io_timeout_s: int | None) -> None:
    """Do what polyvold's reload does; a host that is starting or stopping has nothing to reload."""
    host = _host
    if host is not None:
        host.reload(processors, io_timeout_s)


def cleanup() -> None:
    """Stop polyvol; nbdkit ends afterwards."""
    global _host
    host, _host = _host, None
    if host is not None:
        try:
            host.stop()
        except PolyvolError as error:
            _refuse(str(error))  # at once: to wait for threads that hang would take for ever


# What there is to connect to.


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    """All volumes and snapshots with what they are."""
    return [(export["name"], _description(export["read_only"])) for export in _running().exports()]


def default_export(readonly: bool, is_tls: bool) -> str:
    """What the empty name means."""
    return _running().default_export()


class Refused:
    """An export that could not be opened. nbdkit asks for its size first, and refuses it."""

    size = -1
    read_only = True

    def close(self) -> None:
        """Nothing is open."""


def open(readonly: bool) -> "HandleLike | Refused":
    """Open the export that the client named."""
    try:
        return _running().open(nbdkit.export_name())
    except (OSError, UnicodeDecodeError) as error:  # no such export, or a name that is no text
        nbdkit.debug(str(error))
    except Exception:
        _log.exception("an export could not be opened")
    return Refused()


def close(h: "HandleLike | Refused") -> None:
    """The client is gone."""
    if _host is None or isinstance(h, Refused):  # None: it has stopped, and its engine with it
        h.close()
    else:
        _host.close(h)


def export_description(h: HandleLike) -> str:
    """What kind of export it is."""
    return _description(h.read_only)


def _description(read_only: bool) -> str:
    return "polyvol snapshot" if read_only else "polyvol volume"


# What an export can do.


def get_size(h: "HandleLike | Refused") -> int:
    """Size in bytes."""
    return h.size


def block_size(h: HandleLike) -> tuple[int, int, int]:
    """Smallest, preferred and largest request, bytes."""
    return BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, REQUEST_BYTES_MAX


def can_write(h: HandleLike) -> bool:
    """Volumes are writable, snapshots are not."""
    return not h.read_only


can_trim = can_zero = can_fast_zero = can_write


def can_flush(h: HandleLike) -> bool:
    """Every export can be flushed."""
    return True


def can_multi_conn(h: HandleLike) -> bool:
    """A flush on one connection covers the writes of all."""
    return True


def can_extents(h: HandleLike) -> bool:
    """The engine knows which blocks are zero."""
    return True


def is_rotational(h: HandleLike) -> bool:
    """Not as far as a host should care."""
    return False


def can_fua(h: HandleLike) -> int:
    """The engine does FUA itself."""
    native: int = nbdkit.FUA_NATIVE
    return native


def can_cache(h: HandleLike) -> int:
    """The engine reads ahead itself."""
    native: int = nbdkit.CACHE_NATIVE
    return native


# Requests. `flags` are nbdkit's.


@_with_errno
def pread(h: HandleLike, buf: bytearray, offset: int, flags: int) -> None:
    """Fill the buffer."""
    h.pread_into(buf, offset)


@_with_errno
def pwrite(h: HandleLike, buf: memoryview, offset: int, flags: int) -> None:
    """Write the buffer; durable on return with FUA."""
    h.pwrite(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def flush(h: HandleLike, flags: int) -> None:
    """Make every acknowledged write of every connection durable."""
    h.flush()


@_with_errno
def trim(h: HandleLike, count: int, offset: int, flags: int) -> None:
    """Give space back; what is trimmed reads as zeroes."""
    h.trim(count, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def zero(h: HandleLike, count: int, offset: int, flags: int) -> None:
    """Make a run read as zeroes; FAST_ZERO fails with EOPNOTSUPP when it would take as long as writing."""
    h.zero(
        count,
        offset,
        no_hole=not flags & nbdkit.FLAG_MAY_TRIM,
        fast=bool(flags & nbdkit.FLAG_FAST_ZERO),
        fua=bool(flags & nbdkit.FLAG_FUA),
    )


@_with_errno
def cache(h: HandleLike, count: int, offset: int, flags: int) -> None:
    """Read ahead."""
    h.cache(count, offset)


@_with_errno
def extents(h: HandleLike, count: int, offset: int, flags: int) -> Iterable[tuple[int, int, int]]:
    """Which runs are holes or zeroes."""
    runs = h.block_status(count, offset)
    if flags & nbdkit.FLAG_REQ_ONE:
        runs = runs[:1]
    return [
        (
            run["offset"],
            run["length"],
            (nbdkit.EXTENT_HOLE if run["hole"] else 0) | (nbdkit.EXTENT_ZERO if run["zero"] else 0),
        )
        for run in runs
    ]
