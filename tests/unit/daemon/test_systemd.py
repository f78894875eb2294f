"""What polyvold does for systemd: passed sockets, status and watchdog, reload, the journal; and the units."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.config import Config
from polyvol.daemon.errors import SocketUnusable
from polyvol.daemon.host import sockets
from polyvol.daemon.host.notify import log_to_journal, watchdog_interval_s
from polyvol.daemon.process import main_loop
from tests.support.proc import check, run
from tests.unit.conftest import Daemon

ROOT = Path(__file__).resolve().parents[3]
UNITS = ROOT / "systemd"
EXPOSURE_MAX = 2.0
ANALYZES = pytest.mark.skipif(
    os.geteuid() != 0 and not Path("/run/systemd").is_dir(),
    reason="systemd has not run here: without its /run/systemd, systemd-analyze works for root only",
)
ACTIVATE = """
import os, sys
names, *numbers = sys.argv[1:]
held = [os.dup(int(number)) for number in numbers]
import fcntl
held = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in held]
for wanted, number in enumerate(held, 3):
    os.dup2(number, wanted, inheritable=True)
os.environ.update(LISTEN_FDS=str(len(numbers)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
"""
SIM = """
from polyvol.daemon import engine_border
from tests.support.sim_engine import SimWorld
engine_border.load_engine = SimWorld
"""
MAIN = """
sys.argv = ["polyvold", "--config", os.environ["CONFIG"]]
from polyvol.daemon.main import main
main()
"""


class Systemd:
    """Replaces systemd: holds the sockets, hears what is said, starts polyvold again."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.state_dir = directory / "state"
        self.state_dir.mkdir(mode=0o750)
        self.config = directory / "polyvold.toml"
        self.config.write_text(f'state-dir = "{self.state_dir}"\nprocessors = 1\n')
        self.sockets = [self._listen(stack, name) for name in ("nbd.sock", "control.sock")]
        self._notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._notified.bind(str(directory / "notify"))
        self._notified.settimeout(20)
        self._environment = {"NOTIFY_SOCKET": str(directory / "notify"), "CONFIG": str(self.config)}
        self._stack = stack

    def _listen(self, stack: ExitStack, name: str) -> socket.socket:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(self.state_dir / name))
        listener.listen(16)
        return listener

    def start(
        self, watchdog_s: float | None = None, names: str = "nbd:control", more: Sequence[int] = ()
    ) -> "subprocess.Popen[str]":
        told = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        fds = [*(listener.fileno() for listener in self.sockets), *more]
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE + SIM + MAIN, names, *map(str, fds)],
            env={**os.environ, **self._environment, **told},
            cwd=ROOT,
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def hears(self, wanted: str) -> str:
        """Wait until something is said that has these words, and return all of it."""
        while wanted not in (said := self._notified.recv(4096).decode()):
            pass
        return said


@pytest.fixture
def systemd(short_dir: Path) -> Iterator[Systemd]:
    with ExitStack() as stack:
        yield Systemd(short_dir, stack)


def test_a_client_that_comes_before_polyvold_or_between_two_waits_and_is_served(systemd: Systemd) -> None:
    answers: list[str] = []

    def ask() -> None:
        answers.append(Client(systemd.state_dir).get("status")["daemon"]["nbd"][0])

    for _ in range(2):
        waiting = threading.Thread(target=ask)
        waiting.start()
        process = systemd.start()
        systemd.hears("READY=1")
        waiting.join(20)
        process.send_signal(signal.SIGTERM)
        systemd.hears("STOPPING=1")
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert out.startswith(f"ready: NBD on nbd+unix:///?socket={systemd.state_dir}/nbd.sock")
        assert stat.S_ISSOCK((systemd.state_dir / "control.sock").stat().st_mode)
        assert stat.S_ISSOCK((systemd.state_dir / "nbd.sock").stat().st_mode)
    assert answers == [f"nbd+unix:///?socket={systemd.state_dir}/nbd.sock"] * 2


def test_systemd_hears_how_things_are_and_pings_until_polyvold_hangs(systemd: Systemd) -> None:
    process = systemd.start(watchdog_s=0.6)
    systemd.hears("READY=1")
    assert "STATUS=0 volumes, 0 snapshots, 0 clients" in systemd.hears("STATUS=")
    for _ in range(3):
        systemd.hears("WATCHDOG=1")
    systemd.config.write_text("processors = 2\n")
    process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in systemd.hears("RELOADING=1")
    systemd.hears("READY=1")
    systemd.config.write_text("processors = 0\n")
    process.send_signal(signal.SIGHUP)
    systemd.hears("READY=1")
    assert Client(systemd.state_dir).get("status")["daemon"]["processors"] == 2
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the reload failed, and what was set before goes on" in err


def hang_the_loop(daemon: Daemon, seconds: float) -> None:
    """Have the control API's loop hang where it accepts a connection, once it is asked for one."""
    hanging = threading.Event()

    def hang() -> None:
        hanging.set()
        time.sleep(seconds)
        daemon.service._server._http.accepting = False

    daemon.service._server._http.handle_accept = hang
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(daemon.state_dir / "control.sock"))
        assert hanging.wait(10)


def test_no_ping_is_sent_while_the_loop_does_not_come_round(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(main_loop, "notify", lambda *states: said.extend(states))
    monkeypatch.setattr(main_loop, "watchdog_interval_s", lambda: 0.05)
    monkeypatch.setattr(main_loop, "PROBE_TIMEOUT_S", 0.2)
    probes: list[bool] = []

    def next_signal(_: float) -> int | None:
        probes.append("WATCHDOG=1" in said)
        said.clear()
        if len(probes) == 1:
            hang_the_loop(daemon, 1.0)
        return signal.SIGTERM if len(probes) == 2 else None

    monkeypatch.setattr(main_loop, "next_signal", next_signal)
    main_loop.run(daemon.service, lambda: Config(daemon.state_dir))
    assert probes == [True, False]


def test_two_sockets_named_control_are_refused(systemd: Systemd) -> None:
    process = systemd.start(names="control:control")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert "systemd passes more than one socket of this name" in err


def test_sockets_passed_to_another_process_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert sockets.inherited_from_systemd() == sockets.InheritedSockets()
    assert "LISTEN_FDS" not in os.environ


def test_a_named_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle, pytest.raises(SocketUnusable):
        sockets._named(idle.fileno(), "nbd")


def test_the_watchdog_is_for_the_process_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    assert watchdog_interval_s() == pytest.approx(20)
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_logs_stay_on_a_stderr_that_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not log_to_journal()


# The units.


def exposure(service: str) -> float:
    """What `systemd-analyze security` thinks of a unit, 0 (closed) to 10."""
    said = check("systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / service)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


@ANALYZES
def test_polyvold_is_hardened() -> None:
    assert exposure("polyvold.service") <= EXPOSURE_MAX


@ANALYZES
def test_units_are_right(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        if unit.suffix in {".service", ".socket", ".timer"}:
            text = unit.read_text().replace("/opt/polyvol/bin/", "/bin/true #/")
            (tmp_path / unit.name.replace("@.", "@v.")).write_text(text)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) >= 5
    result = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths)
    assert (result.rc, result.err) == (0, "")


def test_programs_that_units_start_are_where_the_installation_puts_them() -> None:
    for unit in UNITS.glob("*.service"):
        for line in re.findall(r"^Exec\w+=(.*)", unit.read_text(), re.MULTILINE):
            assert "/opt/polyvol/bin/polyvol" in line or line.startswith("/bin/sh -c 'kill "), (
                f"{unit.name}: {line}"
            )
