"""Attaching without the kernel's NBD client: nbdfuse shows the export as a file; that gets a loop device.

How it works      The programs nbdfuse and losetup do it. What is attached is derived from the host: the loop
                  devices over the name's file, and the nbdfuse processes that show it. The record only adds
                  to that, so the next command finds and ends what a killed command left. nbdfuse does not
                  reconnect: when the daemon ends, the device is dead, with I/O errors. Its size is that of
                  the export when nbdfuse was started. It is for hosts whose kernel has no NBD.
Owner and locks   The caller holds the device's lock (records.py).
Errors            errors.py. A failed attach is undone.
"""

import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from polyvol.daemon.client.attach import disks, handshake
from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.errors import KernelRefused, NeedsRoot, ProgramFailed, ServerUnreachable
from polyvol.daemon.client.attach.records import Attached, Places, Wanted, held
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import reason
from polyvol.mapping.programs import NotRun, run_program

HANDSHAKE_S = 10.0
MOUNT_S = 20.0
END_S = 20.0
PROGRAM_S = 30.0
POLL_S = 0.02
SYS_PIDFD_GETFD = 438
"""The same on all machines of Linux 5.6 and newer."""


def find(places: Places, name: str) -> Attached | None:
    """What is attached by this name with nbdfuse, dead or alive, or None."""
    devices = _loops(places, name)
    if not devices:
        return None
    pid = next(iter(_nbdfuses(places, name)), None)
    record = places.now(name)
    if record is not None and record.device in devices:
        return dataclasses.replace(record, pid=pid)
    flags = handshake.FLAG_READ_ONLY if disks.read_only(devices[0]) else 0
    size = disks.size_of(devices[0])
    return Attached(name=name, device=devices[0], kind="fuse", size=size, flags=flags, pid=pid)


def trouble(places: Places, now: Attached) -> str | None:
    """Why a device over nbdfuse does no I/O any more, as a clause; None if it works, and for any other
    device."""
    if now.kind != "fuse":
        return None
    if not _nbdfuses(places, now.name):
        return "its nbdfuse has ended"
    if not all(_connected(pid) for pid in _nbdfuses(places, now.name)):
        return "its server has ended or cannot be reached"
    return None


def uri_of(places: Places, name: str) -> str | None:
    """Where its export is: the last argument of its nbdfuse."""
    for pid in _nbdfuses(places, name):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")[-1]
    return None


def left(places: Places, name: str) -> bool:
    """Whether parts of an incomplete device exist: a killed command left them."""
    record = places.now(name)
    file = places.fuse_file(name)
    recorded = record is not None and record.kind == "fuse"
    return recorded or file.exists() or disks.mounted_at(file) or bool(_nbdfuses(places, name))


def attach(places: Places, wanted: Wanted) -> tuple[Attached, Path]:
    """Make the block device; what it is, and its path. nbdfuse outlives this process."""
    if os.geteuid() != 0:
        raise NeedsRoot(what="attaching")
    address = parse_uri(wanted.uri, wanted.name)
    export = handshake.look(address, HANDSHAKE_S)
    file = places.fuse_file(wanted.name)
    with ExitStack() as undo:
        clean(places, wanted.name)
        undo.callback(clean, places, wanted.name)
        pid = _start_nbdfuse(places, wanted, address.uri, export)
        with disks.UdevWaiter() as waiter:
            device = _losetup(file, wanted, read_only=export.read_only)
            now = Attached(
                name=wanted.name,
                device=device,
                kind="fuse",
                size=export.size,
                flags=export.flags,
                uuid=None if export.uuid is None else str(export.uuid),
                pid=pid,
                uri=address.uri,
            )
            places.write(now)
            if not waiter.wait(lambda: disks.size_of(device) > 0, MOUNT_S):
                raise KernelRefused(what=f"/dev/{device}", why="the device did not appear in time")
            path = waiter.link(device, places.link(wanted.name))
        undo.pop_all()
    return now, path


def detach(places: Places, now: Attached, *, force: bool) -> None:
    """Write what is not written yet, and end the device; AttachedInUse or NotWritten if that cannot be.
    With `force`, what is not written is lost; a device that is in use stays until its users close it, and
    all its I/O fails. The caller has checked its users."""
    dead = trouble(places, now) is not None
    if not force:
        for device in _loops(places, now.name):
            # If it is open here or elsewhere, it ends at the last close.
            with disks.written_out(now.name, device, flush=not dead):
                _run("losetup", "--detach", f"/dev/{device}")
        _wait(lambda: not _loops(places, now.name), f"the end of /dev/{now.device}")
    elif not dead and not _server_answers(places, now.name):
        # losetup would wait for the server because of unwritten data.
        for pid in _nbdfuses(places, now.name):
            _kill(pid)
    clean(places, now.name)


def _server_answers(places: Places, name: str) -> bool:
    uri = uri_of(places, name)
    try:
        if uri is not None:
            handshake.look(parse_uri(uri, name), handshake.LOOK_S)
    except ServerUnreachable:
        return False
    except PolyvolError:  # a refusal is an answer too
        return True
    return True


def clean(places: Places, name: str) -> None:
    """End all processes and devices of this name without writing anything. A loop device that is in use ends
    when its last user closes it; its I/O fails until then."""
    devices = _loops(places, name)
    for device in devices:
        _run("losetup", "--detach", f"/dev/{device}")
    if devices:  # or their users would continue
        for pid in _nbdfuses(places, name):
            _kill(pid)
    _end_nbdfuses(places, name)
    if not disks.UDEV_CONTROL.exists():  # otherwise udev removes it
        places.link(name).unlink(missing_ok=True)
    places.log(name).unlink(missing_ok=True)
    places.forget(Attached, name)


def _start_nbdfuse(places: Places, wanted: Wanted, uri: str, export: handshake.Export) -> int:
    """Start nbdfuse in its own session, and wait until it shows the file; its process id."""
    file, log = places.fuse_file(wanted.name), places.log(wanted.name)
    options = ["--readonly"] if export.read_only else []
    connections = wanted.connections if export.multi_conn else 1
    command = ["nbdfuse", *options, "--connections", str(connections), str(file), uri]
    try:
        for path in (file, log):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.touch()
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        )
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)
    except OSError as error:
        raise ProgramFailed(program="nbdfuse", why=reason(error)) from error
    _wait(lambda: disks.mounted_at(file) or not _runs(pid), "nbdfuse")
    if not disks.mounted_at(file):
        said = log.read_text(errors="replace").strip().splitlines()
        raise ProgramFailed(program="nbdfuse", why=said[-1] if said else "it ended without a message")
    return pid


def _end_nbdfuses(places: Places, name: str) -> None:
    """Unmount, which ends nbdfuse; kill it if it does not end."""
    file = places.fuse_file(name)
    while disks.mounted_at(file):  # several may be stacked
        _run("umount", "--lazy", str(file))
    with contextlib.suppress(ProgramFailed):
        _wait(lambda: not _nbdfuses(places, name), "the end of nbdfuse")
    for pid in _nbdfuses(places, name):
        _kill(pid)
    _wait(lambda: not _nbdfuses(places, name), "the end of nbdfuse")
    with contextlib.suppress(OSError):
        file.unlink()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _loops(places: Places, name: str) -> list[str]:
    """The loop devices over a name's file, except those that end at the last close."""
    file, record = str(places.fuse_file(name)), places.now(name)
    found = []
    for device in (path.name for path in sorted(disks.SYSFS.glob("loop*"))):
        backing = (disks.read(device, "loop/backing_file") or "").removesuffix(" (deleted)")
        # The kernel shows a file whose file system was unmounted as "/".
        ours = backing == file or (backing == "/" and record is not None and record.device == device)
        if ours and disks.read(device, "loop/autoclear") != "1":
            found.append(device)
    return found


def _nbdfuses(places: Places, name: str) -> list[int]:
    """The processes of nbdfuse that show a name's file."""
    file = os.fsencode(places.fuse_file(name))
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and (process / "comm").read_text() == "nbdfuse\n":
                command = (process / "cmdline").read_bytes().split(b"\0")
                if file in command and _runs(int(process.name)):
                    found.append(int(process.name))
    return found


def _connected(pid: int) -> bool:
    """Whether a process has sockets, and each is connected. libnbd closes one when it notices the end, at the
    next I/O. True if the kernel denies the query."""
    found = False
    with contextlib.suppress(OSError), _closing(os.pidfd_open(pid)) as process:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(descriptor.readlink()).startswith("socket:"):
                    found = True
                    if _hung_up(process, int(descriptor.name)):
                        return False
        return found
    return True


def _hung_up(process: int, number: int) -> bool:
    """Whether the peer of another process's socket is gone; OSError if that is unknown."""
    ours = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, process, number, 0)
    if ours < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    with _closing(ours):
        watch = select.poll()
        watch.register(ours, select.POLLRDHUP)
        return bool(watch.poll(0))


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _runs(pid: int) -> bool:
    """Whether a process exists and has not ended; an ended child of this process is reaped."""
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
        done = run_program(command, timeout_s=PROGRAM_S, pass_fds=held())
    except NotRun as error:
        raise ProgramFailed(program=command[0], why=error) from error
    if done.returncode != 0:
        raise ProgramFailed(program=command[0], why=done.stderr.strip() or f"status {done.returncode}")
    return done.stdout


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        if time.monotonic() >= deadline:
            raise ProgramFailed(program=what, why="it took too long")
        time.sleep(POLL_S)
