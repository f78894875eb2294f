"""The front-end nbdkit's keeper with a real nbdkit, whose plugin here runs the service on the sim engine."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from polyvol.daemon import frontend_nbdkit
from polyvol.daemon.cli.client import Client
from polyvol.daemon.config import Config
from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable, FrontendFailed, StateLocked
from polyvol.daemon.service import Service
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
    from polyvol.daemon.sockets import Passed
    service = Service(Path(settings["state-dir"]), serve_nbd=False, frontend="nbdkit",
        passed=Passed(lock=int(settings["lock-fd"])), nbd_addresses=addresses,
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
