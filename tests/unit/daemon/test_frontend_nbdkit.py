"""The front-end nbdkit's keeper with a real nbdkit, whose plugin here runs the service on the sim engine."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.config import Config
from polyvol.daemon.errors import BadConfig, DaemonNotRunning, DaemonUnreachable, FrontendFailed, StateLocked
from polyvol.daemon.isolation import DEFECT
from polyvol.daemon.process import nbdkit as frontend_nbdkit
from polyvol.daemon.service import Service
from polyvol.daemon.state.directory import StateLock
from tests.support.sim_engine import SimWorld

PLUGIN = """
from pathlib import Path
API_VERSION = 2
settings = {}
addresses = []
def config(key, value):
    if key == "nbd-address":
        addresses.append(value)
    settings[key] = value
def after_fork():
    global service
    import os, site
    for path in os.environ["PYTHONPATH"].split(":"):
        site.addsitedir(path)
    from polyvol.daemon.service import Service
    from tests.support.sim_engine import SimWorld
    from polyvol.daemon.host.sockets import InheritedSockets
    service = Service(Path(settings["state-dir"]), serve_nbd=False, frontend="nbdkit",
        passed=InheritedSockets(lock=int(settings["lock-fd"])), nbd_addresses=addresses,
        processors=int(settings["processors"]), engine_module=SimWorld())
    service.start()
    import nbdkit, socket, threading
    def listen():
        with socket.socket(fileno=int(settings["keeper-fd"])) as keeper:
            keeper.recv(1)
        nbdkit.shutdown()
    threading.Thread(target=listen, daemon=True).start()
def cleanup():
    service.stop()
def open(readonly):
    return 1
def get_size(handle):
    return 1 << 20
def pread(handle, buffer, offset, flags):
    buffer[:] = bytes(len(buffer))
"""
needs_nbdkit = pytest.mark.skipif(
    shutil.which("nbdkit") is None or shutil.which("nbdinfo") is None,
    reason="nbdkit, its Python plugin or nbdinfo is not installed",
)


def supervise(state_dir: Path) -> None:
    """Run the keeper without signals."""
    config = Config(state_dir)
    frontend_nbdkit.supervise(config, lambda timeout_s: time.sleep(timeout_s), lambda: config)


def wait_for_pid(client: Client, other_than: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            pid = int(client.get("status")["daemon"]["pid"])
        except (DaemonNotRunning, DaemonUnreachable):
            pid = other_than
        if pid != other_than:
            return pid
        time.sleep(0.02)
    raise AssertionError("the control socket does not answer")


@pytest.mark.slow
@needs_nbdkit
def test_nbdkit_serves_on_sockets_that_outlive_it_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setattr(frontend_nbdkit, "find_plugin", lambda: plugin)
    state_dir = tmp_path / "state"
    told, ready = threading.Event(), threading.Event()
    config = Config(state_dir, processors=3)

    def next_signal(timeout_s: float) -> int | None:
        return signal.SIGTERM if told.wait(timeout_s) else None

    monkeypatch.setattr(frontend_nbdkit, "announce", lambda _: ready.set())
    keeper = threading.Thread(
        target=frontend_nbdkit.supervise, args=(config, next_signal, lambda: config), daemon=True
    )
    keeper.start()
    try:
        client = Client(state_dir)
        first = wait_for_pid(client, 0)
        daemon = client.get("status")["daemon"]
        assert (daemon["frontend"], daemon["processors"]) == ("nbdkit", 3)
        assert daemon["nbd"] == [f"nbd+unix:///?socket={state_dir}/nbd.sock"]
        assert (state_dir / "nbd.sock").stat().st_mode & 0o777 == 0o600
        assert ready.wait(20)
        os.kill(first, signal.SIGKILL)
        size = ["nbdinfo", "--size", f"nbd+unix:///x?socket={state_dir}/nbd.sock"]
        done = subprocess.run(size, capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout == f"{1 << 20}\n"
        assert wait_for_pid(client, first) != first
    finally:
        told.set()
        keeper.join(20)
    assert not keeper.is_alive()
    assert not (state_dir / "nbd.sock").exists()
    assert not (state_dir / "control.sock").exists()


@needs_nbdkit
def test_an_nbdkit_that_never_gets_ready_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("raise SystemExit(1)")
    monkeypatch.setattr(frontend_nbdkit, "find_plugin", lambda: plugin)
    with pytest.raises(FrontendFailed, match="before it was ready"):
        supervise(tmp_path / "state")


class Reloads:
    """A keeper without an nbdkit, the plugin's end of its channel, and what it was told of its reloads."""

    def __init__(self, lock: StateLock) -> None:
        self.keeper = frontend_nbdkit._Keeper(Config(Path("/nowhere")), Path("/nowhere"), [], None, lock)
        self.ours, self.its = socket.socketpair()
        self.ours.setblocking(False)
        self.its.settimeout(10)

    def hear(self, said: bytes) -> None:
        self.its.sendall(said)
        self.keeper._hear(self.ours)


@pytest.fixture
def reloads(tmp_path: Path) -> Iterator[Reloads]:
    lock = StateLock(tmp_path)
    reloads = Reloads(lock)
    yield reloads
    for each in (reloads.ours, reloads.its):
        each.close()
    lock.release()


def test_a_line_that_comes_in_pieces_is_one_line(reloads: Reloads, caplog: pytest.LogCaptureFixture) -> None:
    for piece in (b"relo", b"aded the disk ", b"h\xc3", b"\xa4ngt\nhang"):
        reloads.hear(piece)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["the disk h\xe4ngt"]
    assert not reloads.keeper._reload_wanted
    reloads.hear(b"up\n")
    assert reloads.keeper._reload_wanted


def test_a_reload_passes_on_every_setting_that_can_change(reloads: Reloads) -> None:
    for config, line in [
        (Config(Path("/nowhere"), processors=3, io_timeout_s=7), b"reload 3 7\n"),
        (Config(Path("/nowhere")), b"reload - 60\n"),
    ]:
        reloads.keeper._reload(reloads.ours, lambda config=config: config)  # type: ignore[misc]
        assert reloads.its.recv(100) == line
        assert reloads.keeper._config == config, "what the next nbdkit is started with"


@pytest.mark.parametrize(
    "error", [RuntimeError("of no kind that was expected"), BadConfig(where="x", why="y")]
)
def test_settings_that_cannot_be_read_leave_the_keeper_as_it_is(
    reloads: Reloads, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def read_again() -> Config:
        raise error

    reloads.keeper._reload(reloads.ours, read_again)
    assert "the reload failed, and what was set before goes on" in caplog.text
    assert reloads.keeper._config == Config(Path("/nowhere"))


def test_a_reload_that_fails_in_any_way_is_told_and_the_next_one_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nbdkit", ModuleType("nbdkit"))
    plugin = importlib.import_module("polyvol.nbd_plugin.keeper")
    done = []

    def reload(processors: int | None, io_timeout_s: int | None) -> None:
        done.append((processors, io_timeout_s))
        if len(done) == 1:
            raise KeyError("of no kind that was expected")

    ours, its = socket.socketpair()
    ended = threading.Event()
    with ours, its:
        keeper = plugin.Keeper(its, frozenset(), reload)
        monkeypatch.setattr(keeper, "_end", ended.set)
        for task in (keeper._listen, keeper._reload_each_time):
            threading.Thread(target=task, daemon=True).start()
        ours.settimeout(10)
        lines = ours.makefile("rw")
        for said, answer in [
            ("reload 2 7", f"reloaded {DEFECT}"),
            ("reload - 8", "reloaded "),
            ("reload 3", "reloaded "),
            ("reload", "reloaded "),
        ]:
            lines.write(f"{said}\n")
            lines.flush()
            assert lines.readline() == f"{answer}\n"
        assert done == [(2, 7), (None, 8), (3, None), (None, None)]
        ours.shutdown(socket.SHUT_WR)
        assert ended.wait(10)


def test_a_state_directory_that_is_owned_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend_nbdkit, "find_plugin", lambda: tmp_path)
    service = Service(tmp_path, engine_module=SimWorld())
    service.start()
    with pytest.raises(StateLocked):
        supervise(tmp_path)
    assert (tmp_path / "nbd.sock").exists()
    service.stop()
