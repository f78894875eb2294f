"""test_hung_requests: a disk that does not answer fails its own requests, in time, and holds nobody else.

How it works      The disk is a file over nbdfuse, whose process is stopped (SIGSTOP) and goes on later. A
                  client of a volume on it and a client of another volume do the same.
Errors            Skipped where there is no /dev/fuse, nbdfuse or nbdkit.
"""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.fuse import mounted, needed, unmount
from tests.support.proc import Background, pause, wait_until

MIB = 1 << 20
BLOCK = 4096
TIMEOUT_S = 2
SOON_S = 15
"""What is asked of a healthy volume takes less, on any machine."""


@contextmanager
def fuse_disk(daemon: Daemon) -> Iterator[tuple[Path, Background]]:
    """A file of 256 MiB, and its process. The daemon is stopped while its disk is there."""
    needed()
    for program in ("nbdfuse", "nbdkit"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    directory = daemon.directory
    socket, path = directory / "memory.sock", directory / "disk"
    path.touch()
    with ExitStack() as undo:
        served = undo.enter_context(
            Background("nbdkit", "-f", "-U", socket, "memory", "256M", log=directory / "nbdkit.log")
        )
        served.wait_until(socket.exists, "its socket", 20)
        process = undo.enter_context(
            Background("nbdfuse", path, f"nbd+unix:///?socket={socket}", log=directory / "fuse.log")
        )
        undo.callback(unmount, path)
        undo.callback(os.kill, process.pid, signal.SIGCONT)
        process.wait_until(lambda: mounted(path), "the mount by nbdfuse", 20)
        yield path, process
        daemon.stop()


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    began = time.monotonic()
    try:
        call(*arguments)
        return 0
    except nbd.NbdError as error:
        return int(error.errnum or -1)
    finally:
        assert time.monotonic() - began < SOON_S


def events(daemon: Daemon) -> str:
    return " / ".join(event["text"] for event in daemon.json("status")["events"])


@pytest.mark.slow
def test_a_disk_that_hangs_fails_its_requests_and_holds_nobody_else(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("--io-timeout", str(TIMEOUT_S))
    with fuse_disk(daemon) as (path, process), ExitStack() as open_now:
        daemon.ok("device", "add", path, "--name", "h", "--force")
        daemon.ok("volume", "create", "hung", "--size", "64M", "--device", "h", "--log-device", "h")
        daemon.ok("volume", "create", "good", "--size", "64M")
        hung, good = (
            open_now.enter_context(nbd.connect(nbd.uri(name, daemon.nbd_socket))) for name in ("hung", "good")
        )
        hung.pwrite(b"a" * MIB, 0)
        hung.flush()
        pause(process.pid)
        check_hung(daemon, hung, good)
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: daemon.json("device", "show", "h")["state"] == "ok", "its answer", SOON_S)
        assert "device h answers again" in events(daemon)
        wait_until(lambda: errno_of(hung.pwrite, b"c" * BLOCK, 0) == 0, "a write", SOON_S)
        assert errno_of(hung.flush) == 0
        assert hung.pread(BLOCK, 0) == b"c" * BLOCK
        daemon.ok("snapshot", "create", "hung")


@pytest.mark.slow
def test_a_volume_deleted_while_its_disk_hangs_is_gone_when_it_answers(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("--io-timeout", str(TIMEOUT_S))
    with fuse_disk(daemon) as (path, process):
        daemon.ok("device", "add", path, "--name", "h", "--force")
        daemon.ok("volume", "create", "hung", "--size", "64M", "--device", "h", "--log-device", "h")
        pause(process.pid)
        with nbd.connect(daemon.uri("hung")) as hung:
            assert errno_of(hung.pwrite, b"b" * BLOCK, 0) == errno.EIO
        daemon.refused("volume", "delete", "hung", "--yes")
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: daemon.json("volume", "list") == [], "the end of the volume", SOON_S)
        daemon.ok("device", "remove", "h")


@pytest.mark.slow
@pytest.mark.parametrize("frontend", ["native", "nbdkit"])
def test_a_reload_changes_the_time_out(make_daemon: Callable[..., Daemon], frontend: str) -> None:
    daemon = make_daemon()
    daemon.stop()
    settings = daemon.directory / "polyvold.toml"
    settings.write_text(f'frontend = "{frontend}"\nio-timeout = 3600\n')
    daemon.arguments = ("--config", settings)
    daemon.start()
    with fuse_disk(daemon) as (path, process), ExitStack() as open_now:
        daemon.ok("device", "add", path, "--name", "h", "--force")
        daemon.ok("volume", "create", "hung", "--size", "64M", "--device", "h", "--log-device", "h")
        settings.write_text(f'frontend = "{frontend}"\nio-timeout = {TIMEOUT_S}\n')
        os.kill(daemon.pid, signal.SIGHUP)
        hung = open_now.enter_context(nbd.connect(daemon.uri("hung")))
        pause(process.pid)
        assert errno_of(hung.pwrite, b"b" * BLOCK, 0) == errno.EIO
        assert f"after {TIMEOUT_S} s" in daemon.json("device", "show", "h")["reason"]
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: daemon.json("device", "show", "h")["state"] == "ok", "its answer", SOON_S)


def check_hung(daemon: Daemon, hung: Any, good: Any) -> None:
    """What each of them meets while the disk of one hangs."""
    assert errno_of(hung.pwrite, b"b" * BLOCK, 0) == errno.EIO
    for call in (hung.trim, hung.zero, hung.cache):
        assert errno_of(call, MIB, 8 * MIB) == errno.EIO
    assert errno_of(hung.pwrite, b"d" * BLOCK, 0) == errno.EIO
    assert errno_of(hung.flush) == errno.EIO
    for number in range(16):
        assert errno_of(good.pwrite, b"g" * BLOCK, number * 4 * MIB) == 0
    assert errno_of(good.flush) == 0
    assert good.pread(BLOCK, 0) == b"g" * BLOCK
    shown = daemon.json("device", "show", "h")
    assert shown["state"] == "hung"
    assert f"requests end with EIO after {TIMEOUT_S} s" in shown["reason"]
    assert "device h: it has not answered for" in events(daemon)
    assert daemon.json("volume", "show", "hung")["state"] == "degraded"
    daemon.refused("snapshot", "create", "hung")
    daemon.ok("snapshot", "create", "good")
