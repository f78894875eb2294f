"""Attaching without the kernel's NBD client: nbdfuse shows the export as a file; that gets a loop device.

How it works      The programs nbdfuse and losetup do it. nbdfuse does not connect again: when the daemon
                  ends, so does the device, with I/O errors; it is for hosts whose kernel has no NBD.
Errors            errors.py. What was begun by an attach that fails is undone.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from polyvol.daemon.attach import disks, handshake
from polyvol.daemon.attach.address import parse_uri
from polyvol.daemon.attach.errors import KernelRefused, NeedsRoot, ProgramFailed
from polyvol.daemon.attach.records import Now, Places, Wanted

HANDSHAKE_S = 10.0
MOUNT_S = 20.0
END_S = 20.0
PROGRAM_S = 30.0
POLL_S = 0.02


def find(places: Places, name: str) -> Now | None:
    """What is attached by this name with nbdfuse, or None."""
    now = places.now(name)
    if now is None or now.kind != "fuse":
        return None
    return now if disks.is_loop_of(now.device, places.fuse_file(name)) else None


def alive(now: Now) -> bool:
    """Whether its nbdfuse runs, so that there is somebody to do its I/O."""
    return now.pid is not None and _is_nbdfuse(now.pid)


def attach(places: Places, wanted: Wanted) -> tuple[Now, Path]:
    """Make the block device; what it is, and its path. nbdfuse goes on when this process ends."""
    if os.geteuid() != 0:
        raise NeedsRoot(what="attaching")
    address = parse_uri(wanted.uri, wanted.name)
    export = handshake.look(address, HANDSHAKE_S)
    file = places.fuse_file(wanted.name)
    with ExitStack() as undo:
        pid = _start_nbdfuse(places, wanted, address.uri, export)
        undo.callback(_end_nbdfuse, file, pid)
        with disks.Arrival() as arrival:
            device = _losetup(file, wanted, read_only=export.read_only)
            undo.callback(_run, "losetup", "--detach", f"/dev/{device}")
            now = Now(
                name=wanted.name,
                device=device,
                kind="fuse",
                size=export.size,
                flags=export.flags,
                uuid=None if export.uuid is None else str(export.uuid),
                pid=pid,
            )
            places.write(now)
            if not arrival.wait(lambda: disks.size_of(device) > 0, MOUNT_S):
                raise KernelRefused(what=f"/dev/{device}", why="the device did not appear in time")
            path = arrival.link(device, places.link(wanted.name))
        undo.pop_all()
    return now, path


def detach(places: Places, now: Now, *, force: bool) -> None:
    """Write what is not written yet, and end the device; AttachedInUse or NotWritten if that cannot be.
    With `force`, what is not written is lost; a device that is in use stays until its users let go of it, and
    all its I/O fails. The caller has looked who uses it."""
    file = places.fuse_file(now.name)
    if disks.is_loop_of(now.device, file):
        # Held by us, or by others, it ends when the last one has closed it.
        with contextlib.nullcontext() if force else disks.written_out(now.name, now.device):
            _run("losetup", "--detach", f"/dev/{now.device}")
        if not force:
            _wait(lambda: not disks.is_loop_of(now.device, file), f"the end of /dev/{now.device}")
    if force and now.pid is not None and _is_nbdfuse(now.pid):
        os.kill(now.pid, signal.SIGKILL)  # or what still uses the loop device would go on
    _end_nbdfuse(file, now.pid)
    disks.remove_link(places.link(now.name), now.device)
    places.log(now.name).unlink(missing_ok=True)
    places.forget(Now, now.name)


def _start_nbdfuse(places: Places, wanted: Wanted, uri: str, export: handshake.Export) -> int:
    """nbdfuse, in a session of its own, once it shows the file; its process id."""
    file, log = places.fuse_file(wanted.name), places.log(wanted.name)
    options = ["--readonly"] if export.read_only else []
    connections = wanted.connections if export.multi_conn else 1
    command = ["nbdfuse", *options, "--connections", str(connections), str(file), uri]
    try:
        for path in (file, log):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if disks.mounted_at(file):  # of one that has died
            _run("umount", "--lazy", str(file))
        file.touch()
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        )
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)
    except OSError as error:
        raise ProgramFailed(program="nbdfuse", why=error.strerror or error) from error
    try:
        _wait(lambda: disks.mounted_at(file) or not _runs(pid), "nbdfuse")
        if not disks.mounted_at(file):
            said = log.read_text(errors="replace").strip().splitlines()
            raise ProgramFailed(program="nbdfuse", why=said[-1] if said else "it has ended without a word")
    except BaseException:
        _end_nbdfuse(file, pid)
        raise
    return pid


def _end_nbdfuse(file: Path, pid: int | None) -> None:
    """Unmount, upon which nbdfuse ends; if it does not, it is made to."""
    if disks.mounted_at(file):
        with contextlib.suppress(ProgramFailed):
            _run("umount", "--lazy", str(file))
    if pid is not None:
        with contextlib.suppress(ProgramFailed):
            _wait(lambda: not _is_nbdfuse(pid), "the end of nbdfuse")
        if _is_nbdfuse(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        file.unlink()


def _is_nbdfuse(pid: int) -> bool:
    """Whether the process of this id is nbdfuse: it may long have ended, and another have its id."""
    return _runs(pid) and _status(pid).startswith("Name:\tnbdfuse\n")


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended; a child of ours that has is let go."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    status = _status(pid)
    return status != "" and "\nState:\tZ" not in status


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def _losetup(file: Path, wanted: Wanted, *, read_only: bool) -> str:
    options = ["--read-only"] if read_only else []
    options += ["--sector-size", str(wanted.block_size), "--direct-io=on"]
    given = [wanted.device] if wanted.device is not None else ["--find"]
    if wanted.device is not None:
        _run("losetup", *options, *given, str(file))
        return Path(wanted.device).name
    return Path(_run("losetup", *options, "--show", *given, str(file)).strip()).name


def _run(*command: str) -> str:
    """Run a program to its end; its output."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else "it took too long"
        raise ProgramFailed(program=command[0], why=why) from error
    if done.returncode != 0:
        raise ProgramFailed(program=command[0], why=done.stderr.strip() or f"status {done.returncode}")
    return done.stdout


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        if time.monotonic() >= deadline:
            raise ProgramFailed(program=what, why="it took too long")
        time.sleep(POLL_S)
