"""test_nbdkit: polyvold behind nbdkit obeys signals, leaves nothing when it is killed, and does not grow.

How it works      A real polyvold keeps a real nbdkit. Signals go to either of the two while a client writes.
"""

import errno
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from polyvol.daemon.process.nbdkit import find_plugin
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import Argument, Background, check, pause, run, wait_until
from tests.support.raw_nbd import (
    FLUSH,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_LIST,
    READ,
    REP_ACK,
    STATUS,
    ZERO,
    Peer,
    go,
    option,
    request,
)

KILLED_UP_TO_MS = 100
OPENS = 2000
FAILURES_AT_ONCE = 50
GROWTH_KIB = 1024
"""What 2,000 connections may add to a process; a leak of 1.5 KiB for each would be three times that."""


def of_state(daemon: Daemon) -> list[int]:
    """All processes whose command line names the daemon's state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and str(daemon.state_dir).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    "number",
    ["SIGHUP", *(pytest.param(each, marks=pytest.mark.slow) for each in ("SIGUSR1", "SIGUSR2", "SIGPIPE"))],
)
@pytest.mark.parametrize("frontend", ["native", "nbdkit"])
def test_signals_that_do_not_end_it(make_daemon: Callable[..., Daemon], frontend: str, number: str) -> None:
    daemon = make_daemon("--frontend", frontend)
    daemon.make_volume("v", size="8M", partition_size="1M")
    pid = daemon.served_by
    with nbd.connect(daemon.uri("v")) as handle:
        for _ in range(3):
            os.kill(daemon.pid, signal.Signals[number])
            handle.pwrite(b"kept", 0)
            time.sleep(0.05)
        assert handle.pread(4, 0) == b"kept"
    assert daemon.served_by == pid
    daemon.stop()
    assert daemon.said().count("\n") == 1, "more than `ready`"


def test_a_reload_has_as_many_processors_as_the_settings_say(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.stop()
    settings = daemon.directory / "polyvold.toml"
    daemon.arguments = ("--config", settings)
    settings.write_text('frontend = "nbdkit"\nprocessors = 1\n')
    daemon.start()

    def processors() -> int:
        count: int = daemon.api.get("status")["daemon"]["processors"]
        return count

    assert processors() == 1
    settings.write_text('frontend = "nbdkit"\nprocessors = 2\n')
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: processors() == 2, "the second processor")
    settings.write_text('frontend = "nbdkit"\nprocessors = 3\n')
    os.kill(daemon.served_by, signal.SIGHUP)
    wait_until(lambda: processors() == 3, "the third processor")
    settings.write_text('processors = "many"\n')
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: "the reload failed, and what was set before goes on" in daemon.said(), "the sentence")
    settings.write_text('frontend = "nbdkit"\nprocessors = 4\n')
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: processors() == 4, "the fourth processor")


@pytest.mark.slow
def test_a_device_that_came_back_is_found_by_a_reload(nbdkit: Daemon) -> None:
    nbdkit.add_devices("late")
    image, aside = nbdkit.directory / "late.img", nbdkit.directory / "aside"
    nbdkit.stop()
    image.rename(aside)
    nbdkit.start()

    def state() -> str:
        return str(nbdkit.api.get("devices", "late")["state"])

    assert state() == "missing"
    aside.rename(image)
    os.kill(nbdkit.pid, signal.SIGHUP)
    wait_until(lambda: state() != "missing", "the device")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_twice_to_end_it_ends_once(nbdkit: Daemon, number: signal.Signals) -> None:
    with nbd.connect(nbdkit.uri("v")) as handle:
        handle.pwrite(b"kept", 0)
        for pid in (nbdkit.pid, nbdkit.served_by, nbdkit.pid):
            os.kill(pid, number)
        nbdkit.stop()
    assert of_state(nbdkit) == []
    nbdkit.start()
    assert nbd.read_all(nbdkit.uri("v"))[:4] == b"kept"


@pytest.mark.parametrize(
    "number", ["SIGTERM", *(pytest.param(each, marks=pytest.mark.slow) for each in ("SIGINT", "SIGQUIT"))]
)
def test_an_nbdkit_that_is_ended_with_a_client_connected_is_started_again(
    nbdkit: Daemon, number: str
) -> None:
    first = nbdkit.served_by
    with nbd.connect(nbdkit.uri("v")) as handle:
        handle.pwrite(b"kept", 0)
        os.kill(first, signal.Signals[number])
        wait_until(lambda: not Path(f"/proc/{first}").exists(), "the end of nbdkit", 20)
        with nbd.connect(nbdkit.uri("v")) as another:
            assert another.pread(4, 0) == b"kept"


@pytest.mark.slow
def test_stopped_and_continued_it_serves(nbdkit: Daemon) -> None:
    for pid in (nbdkit.pid, nbdkit.served_by):
        pause(pid)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        with nbd.connect(nbdkit.uri("v")) as handle:
            handle.pwrite(b"kept", 0)
    os.kill(nbdkit.pid, signal.SIGHUP)
    assert nbdkit.cli("status").rc == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_a_polyvold_that_is_killed_is_started_again_at_once(nbdkit: Daemon, number: signal.Signals) -> None:
    with nbd.connect(nbdkit.uri("v")) as handle:
        handle.pwrite(b"kept", 0)
        for _ in range(5):
            os.kill(nbdkit.pid, number)
            assert nbdkit._process is not None
            nbdkit._process.wait()
            nbdkit.start()
            assert nbd.read_all(nbdkit.uri("v"))[:4] == b"kept"


def has_child(pid: int) -> bool:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text() != ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_nbdkit_outlives_a_polyvold_that_is_killed_just_after_it_has_started_it(nbdkit: Daemon) -> None:
    nbdkit.stop()
    for delay_ms in range(0, KILLED_UP_TO_MS + 1, 2):
        process = nbdkit.launch()
        process.wait_until(partial(has_child, process.pid), "the start of nbdkit")
        time.sleep(delay_ms / 1000)
        process.signal(signal.SIGKILL)  # not its session: what it has started is to end by itself
        process.wait()
    wait_until(lambda: of_state(nbdkit) == [], "the end of every nbdkit", 10)
    nbdkit.start()
    assert nbd.read_all(nbdkit.uri("v"))[:1] == b"\0"


def wrong_name(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        for _ in range(5):
            peer.socket.sendall(go("nobody"))
            assert peer.answers() != REP_ACK


def wrong_name_of_old(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(option(OPT_EXPORT_NAME, b"nobody"))
        assert peer.socket.recv(1) == b""


def no_name_at_all(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(option(OPT_GO, struct.pack(">I", 2) + b"\xff\xfe" + struct.pack(">H", 0)))
        assert peer.answers() != REP_ACK


def list_exports(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(option(OPT_LIST))
        assert peer.answers() == REP_ACK


def no_handshake(path: Path) -> None:
    with Peer(path) as peer:
        peer.take(18)


def half_an_option(path: Path) -> None:
    with Peer(path) as peer:
        peer.greet()
        peer.socket.sendall(go("v")[:-3])


def enter_and_leave(path: Path) -> None:
    with Peer(path) as peer:
        peer.enter("v")


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
def test_connections_of_any_kind_leave_nothing_in_nbdkit(nbdkit: Daemon) -> None:
    kinds = [
        no_name_at_all,
        wrong_name,
        wrong_name_of_old,
        list_exports,
        no_handshake,
        half_an_option,
        enter_and_leave,
    ]
    pid = nbdkit.served_by
    for kind in kinds:
        for _ in range(200):
            kind(nbdkit.nbd_socket)
        before = resident_kib(pid)
        for _ in range(OPENS):
            kind(nbdkit.nbd_socket)
        grown = resident_kib(pid) - before
        assert grown < GROWTH_KIB, f"{kind.__name__}: {grown} KiB after {OPENS}"
    assert "nobody" not in nbdkit.said()


@pytest.mark.slow
def test_requests_that_fail_leave_nothing_in_nbdkit(nbdkit: Daemon) -> None:
    """A device of the volume became shorter, so that requests beyond its end fail."""
    pid = nbdkit.served_by
    for path in nbdkit.directory.glob("v-[01].img"):
        os.truncate(path, 4096)
    requests = [
        request(READ, 8192, 512),
        request(FLUSH, 0, 0),
        request(STATUS, 8192, 4096),
        request(ZERO, 8192, 4096),
    ]
    with Peer(nbdkit.nbd_socket).enter("v") as peer:
        before = 0
        for count in (5, 5 * FAILURES_AT_ONCE):  # the first ones make what stays
            before = resident_kib(pid)
            for _ in range(count):
                peer.socket.sendall(b"".join(requests) * FAILURES_AT_ONCE)
                errors = {peer.reply().error for _ in range(len(requests) * FAILURES_AT_ONCE)}
                assert errors == {errno.EIO}
        assert resident_kib(pid) - before < GROWTH_KIB
    assert "Traceback" not in nbdkit.said()


def another_python(directory: Path) -> Path:
    """A virtual environment of our version that has none of our packages; its programs' directory."""
    check("/usr/bin/python3", "-m", "venv", "--without-pip", directory)
    return directory / "bin"


def test_another_python_of_the_environment_does_not_matter(short_dir: Path) -> None:
    other = another_python(short_dir / "other")
    packages = next((short_dir / "other").glob("lib/python3*/site-packages"))
    (packages / "click.py").write_text("raise ImportError('of another Python')")
    (packages / "nbdkit.py").write_text("raise ImportError('of another Python')")
    environment = {
        "PATH": f"{other}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "VIRTUAL_ENV": str(short_dir / "other"),
    }
    command: list[Argument] = ["nbdkit", "-U", "-", "python", find_plugin(), f"state-dir={short_dir}/state"]
    done = run(*command, "--run", 'nbdinfo --list "$uri"', env=environment)
    assert done.rc == 0, done


def test_by_hand_it_reloads_and_ends_with_its_clients(short_dir: Path) -> None:
    socket, state = short_dir / "s", short_dir / "state"
    command: list[Argument] = ["nbdkit", "-f", "-U", socket, "python", find_plugin(), f"state-dir={state}"]
    with Background(*command, log=short_dir / "log") as process:
        process.wait_until(lambda: socket.exists() and (state / "control.sock").exists(), "nbdkit")
        with Peer(socket) as peer:
            peer.greet()
            process.signal(signal.SIGHUP)
            peer.socket.sendall(option(OPT_LIST))
            assert peer.answers() == REP_ACK
            assert process.stop() == 0
