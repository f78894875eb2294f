"""Why polyvold cannot be reached, and what the user can do, judged by its socket's path.

How it works      The state directory and the socket are checked only after connecting has failed. How to
                  start polyvold depends on whether its service is installed here and uses this directory.
Errors            None: errors are made here, and raised by the caller.
"""

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path

from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable
from polyvol.daemon.host.accounts import user_name
from polyvol.daemon.host.sockets import PATH_BYTES_MAX
from polyvol.daemon.state.directory import DEFAULT_STATE_DIR, control_socket
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import advice, directory_at_fault, reason
from polyvol.mapping.programs import NotRun, run_program

UNIT = "polyvold.service"
UNIT_DIRS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
GROUP = "polyvol"
SYSTEMD = Path("/run/systemd/system")
SYSTEMCTL_S = 20.0
_LOOK_FIRST = "; look at what it shows before you repeat the command, because it may have been done"


def may_run(state_dir: Path) -> bool:
    """Whether a daemon may run there. Connecting to the socket of a stopped unit would start it."""
    if state_dir.absolute() != Path(DEFAULT_STATE_DIR) or not SYSTEMD.is_dir():
        return True
    command = ["systemctl", "show", "--property=ActiveState", "--value", UNIT]
    try:
        done = run_program(command, timeout_s=SYSTEMCTL_S)
    except NotRun:
        return True
    return done.stdout.strip() not in ("inactive", "failed")


def not_reached(state_dir: Path, error: OSError) -> PolyvolError:
    """The error for a failed connect."""
    path = control_socket(state_dir)
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        why = f"the path of its control socket is longer than {PATH_BYTES_MAX} bytes"
        return DaemonUnreachable(state=state_dir, why=why, todo="give a shorter --state-dir, such as a link")
    if isinstance(error, PermissionError):
        return _denied(state_dir, path, error)
    pid = _holder(state_dir)
    if pid is not None and isinstance(error, FileNotFoundError | ConnectionRefusedError):
        why, todo = (
            f"it is starting or ending (pid {pid})",
            f"wait a little, then try again; see {_log(state_dir)}",
        )
        return DaemonUnreachable(state=state_dir, why=why, todo=todo)
    if isinstance(error, FileNotFoundError):
        there = os.path.lexists(state_dir)
        why = "it has no control socket" if there else "there is no such directory"
        return DaemonNotRunning(state=state_dir, why=why, todo=_start(state_dir, there=there))
    if isinstance(error, NotADirectoryError):
        todo = "give --state-dir the directory of a polyvold"
        return DaemonUnreachable(state=state_dir, why="it is not a directory", todo=todo)
    if isinstance(error, ConnectionRefusedError):
        with suppress(OSError):
            if not stat.S_ISSOCK(path.stat().st_mode):
                todo = f"move it away, then {_start(state_dir)}"
                return DaemonUnreachable(state=state_dir, why=f"{path} is not a socket", todo=todo)
        why = "nobody listens on its control socket"
        return DaemonNotRunning(state=state_dir, why=why, todo=_start(state_dir))
    if isinstance(error, BlockingIOError):
        return silent(state_dir, "it does not take connections")
    return DaemonUnreachable(state=state_dir, why=reason(error, path), todo=advice(error))


def silent(state_dir: Path, why: str, *, changes: bool = False) -> PolyvolError:
    """The error for a daemon that does not answer. `changes`: it was asked to change something."""
    todo = f"see {_log(state_dir)} for what it does{_LOOK_FIRST if changes else ''}"
    return DaemonUnreachable(state=state_dir, why=why, todo=todo)


def not_polyvold(state_dir: Path) -> PolyvolError:
    """The error for an answer that is not polyvold's."""
    why = f"what answers on {control_socket(state_dir)} is not polyvold"
    return DaemonUnreachable(state=state_dir, why=why, todo="give the --state-dir of a polyvold")


def _denied(state_dir: Path, path: Path, error: OSError) -> PolyvolError:
    """The socket, or a directory of its path, is closed to this user."""
    closed = directory_at_fault(error.errno or 0, path)
    what = path if closed is None else f"the directory {closed}"
    owner, group = _owner(path, state_dir), GROUP
    by_group = False
    for each in (path, state_dir):
        with suppress(OSError, KeyError):
            status = each.stat()
            by_group = bool(status.st_mode & stat.S_IRWXG) and status.st_gid != 0
            group = grp.getgrgid(status.st_gid).gr_name
            break
    if by_group:
        how = f"`sudo usermod -aG {group} {user_name(os.geteuid())}`, then log in again"
        todo = f"add yourself to group {group} ({how}) or use sudo"
    else:
        todo = f"run it as user {owner}, or with sudo"
    return DaemonUnreachable(state=state_dir, why=f"permission denied on {what}", todo=todo)


def _holder(state_dir: Path) -> int | None:
    """The process that has the lock of a state directory open, as its file says; None where there is none, or
    that may not be looked at. The lock itself is not tried: it would stop a polyvold that is starting. Only
    files of its name are looked at: others may be devices, and a `stat` of one that hangs does not return."""
    lock = state_dir / "lock"
    with suppress(OSError, ValueError):
        pid = int(lock.read_text(encoding="ascii"))
        wanted = lock.stat()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # a file that has been closed
                if file.readlink().name == lock.name and os.path.samestat(file.stat(), wanted):
                    return pid
    return None


def _owner(*paths: Path) -> str:
    """The owner of the first of these paths that is accessible."""
    for path in paths:
        with suppress(OSError):
            return user_name(path.stat().st_uid)
    return "root"


def _is_service(state_dir: Path) -> bool:
    """Whether this state directory is the one of the service that is installed here."""
    return state_dir.absolute() == Path(DEFAULT_STATE_DIR) and any(
        os.path.lexists(f"{directory}/{UNIT}") for directory in UNIT_DIRS
    )


def _start(state_dir: Path, *, there: bool = True) -> str:
    if _is_service(state_dir):
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"start it with `{sudo}systemctl start polyvold`, and see `systemctl status polyvold`"
    if not there:
        start = f"start one there with `polyvold --state-dir {state_dir}`"
        return f"give --state-dir the directory of a polyvold, or {start}"
    return f"start it with `polyvold --state-dir {state_dir}`"


def _log(state_dir: Path) -> str:
    return "`journalctl -u polyvold`" if _is_service(state_dir) else "its log"
