"""The service: one owner, what a restart finds, what a kill or a failure leaves, devices that go."""

import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.ending import as_error
from polyvol.daemon.errors import BadConfig, SocketUnusable, StateLocked
from polyvol.daemon.host import sockets
from polyvol.daemon.service import Service
from polyvol.mapping.errors import BadProcessors
from tests.support.sim_engine import SimEngine, SimWorld
from tests.unit.conftest import Daemon

MIB = 1 << 20


def kill(daemon: Daemon) -> None:
    """End the service without any of its own cleaning up, as SIGKILL does: only what the kernel does."""
    for step in ("flush", "remove_volume", "drop_snapshot", "unexport"):
        daemon.world.fail[step] = 0  # nothing may be made durable on the way out
    daemon.service.stop()
    daemon.world.fail.clear()
    assert isinstance(daemon.service.engine, SimEngine)


def state_of(daemon: Daemon, volume: str) -> str:
    return str(json.loads(daemon.ok("volume", "show", volume, "--json"))["state"])


def exports(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.service.exports()]


def test_sockets_have_mode_0600_and_are_gone_after_a_stop(daemon: Daemon) -> None:
    for name in ("control.sock", "nbd.sock"):
        assert (daemon.state_dir / name).stat().st_mode & 0o777 == 0o600
    assert daemon.state_dir.stat().st_mode & 0o777 == 0o700
    daemon.service.stop()
    daemon.service.stop()
    assert not (daemon.state_dir / "control.sock").exists()
    assert not (daemon.state_dir / "nbd.sock").exists()
    assert daemon.world.names().count("stop") == 1
    assert "is not running" in daemon.refused("status")


def test_a_second_owner_is_refused_and_the_first_serves_on(daemon: Daemon) -> None:
    with pytest.raises(
        StateLocked, match=rf"polyvold \(pid {os.getpid()}\) already runs on {daemon.state_dir}"
    ):
        Service(daemon.state_dir, engine_module=SimWorld()).start()
    daemon.ok("status")
    daemon.restart()
    daemon.ok("status")


def test_a_restart_serves_everything_again(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.service.engine.open("v").pwrite(b"kept", 0)
    daemon.ok("snapshot", "create", "v", "--name", "s")
    before = json.loads(daemon.ok("snapshot", "list", "--json"))
    daemon.restart()
    assert exports(daemon) == ["v", "v@s"]
    frozen = daemon.service.engine.open("v@s")
    assert frozen.pread(4, 0) == b"kept"
    frozen.close()
    assert json.loads(daemon.ok("snapshot", "list", "--json")) == before


def test_a_probe_of_a_killed_process_is_removed(daemon: Daemon) -> None:
    left = daemon.state_dir / ".probe-4711"
    left.write_bytes(bytes(4096))
    daemon.restart()
    assert not left.exists()


def test_a_moved_state_directory_is_served(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.service.stop()
    daemon.state_dir = daemon.state_dir.rename(tmp_path / "elsewhere")
    daemon.start()
    assert state_of(daemon, "v") == "serving"


@pytest.mark.parametrize("step", ["grow_processors", "open_device", "add_volume", "export"])
def test_a_create_that_fails_leaves_nothing(daemon: Daemon, step: str) -> None:
    daemon.world.fail[step] = 0
    wanted = ["volume", "create", "v", "--size", "4M", "--partition-size", "1M", "--processors", "3"]
    words = daemon.refused(*wanted)
    assert f"simulated failure of {step}" in words
    daemon.world.fail.clear()
    assert json.loads(daemon.ok("volume", "list", "--json")) == []
    assert json.loads(daemon.ok("device", "list", "--json")) == []
    assert not list((daemon.state_dir / "devices").iterdir())
    assert exports(daemon) == []
    daemon.ok(*wanted)


def test_a_volume_half_made_is_removed_at_the_next_start(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    catalog = daemon.service._context.catalog
    catalog.volumes.set_state(catalog.volumes.all()[0].id, "creating")
    daemon.restart()
    assert json.loads(daemon.ok("volume", "list", "--json")) == []
    assert not list((daemon.state_dir / "devices").iterdir())


@pytest.mark.parametrize("by", ["a start", "a reload", "the same verb", "another volume's create"])
def test_a_delete_that_was_cut_off_is_finished(daemon: Daemon, tmp_path: Path, by: str) -> None:
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M")
    daemon.ok("volume", "create", "v", "--size", "1M", "--device", "d")
    with (tmp_path / "d").open("r+b") as file:
        file.seek(MIB)
        file.write(b"secret")
    daemon.world.fail["remove_volume"] = 0
    assert "taking volume v out of service failed" in daemon.refused("volume", "delete", "v", "--yes")
    assert state_of(daemon, "v") == "deleting"
    daemon.world.fail.clear()
    if by == "a start":
        daemon.restart()
    elif by == "a reload":
        daemon.service.reload()
    elif by == "the same verb":
        daemon.ok("volume", "delete", "v", "--yes")
    else:
        daemon.ok("volume", "create", "w", "--size", "1M")
        daemon.ok("volume", "delete", "w", "--yes")
    assert json.loads(daemon.ok("volume", "list", "--json")) == []
    assert b"secret" not in (tmp_path / "d").read_bytes()


def test_a_kill_before_a_cut_is_recorded_leaves_no_snapshot(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    uuid = json.loads(daemon.ok("volume", "show", "v", "--json"))["uuid"]
    daemon.service.engine.cut([{"volume": 1, "log_rules": []}])  # and no more: killed
    kill(daemon)
    assert len(daemon.world.stored[uuid].snapshots) == 1
    daemon.start()
    assert daemon.world.stored[uuid].snapshots == {}
    assert json.loads(daemon.ok("snapshot", "list", "--json")) == []


def test_a_failed_snapshot_leaves_nothing_and_says_so(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.world.fail["flush"] = 0
    assert "the snapshot of v could not be made" in daemon.refused("snapshot", "create", "v", "--name", "s")
    daemon.world.fail.clear()
    daemon.ok("snapshot", "create", "v", "--name", "s")


def test_what_the_catalog_would_not_forget_is_exported_on(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    catalog = daemon.service._context.catalog
    catalog._database._connection.execute("PRAGMA query_only = ON")
    assert "catalog" in daemon.refused("snapshot", "delete", "v@s")
    assert "catalog" in daemon.refused("volume", "delete", "v", "--yes")
    assert "catalog" in daemon.refused("snapshot", "create", "v", "--name", "t")
    catalog._database._connection.execute("PRAGMA query_only = OFF")
    assert exports(daemon) == ["v", "v@s"]
    daemon.ok("volume", "delete", "v", "--yes")


def test_a_device_half_added_or_half_removed_is_forgotten_at_the_next_start(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.ok("device", "add", str(tmp_path / "a"), "--size", "8M")
    daemon.ok("device", "add", str(tmp_path / "b"), "--size", "8M")
    catalog = daemon.service._context.catalog
    catalog.devices.set_state(1, "adding")
    catalog.devices.set_state(2, "removing")
    daemon.restart()
    assert json.loads(daemon.ok("device", "list", "--json")) == []
    assert not (tmp_path / "a").exists()
    daemon.ok("device", "add", str(tmp_path / "a"), "--size", "8M")
    daemon.ok("device", "add", str(tmp_path / "b"))


def test_a_device_that_cannot_be_opened_is_not_added(daemon: Daemon, tmp_path: Path) -> None:
    daemon.world.fail["open_device"] = 0
    daemon.refused("device", "add", str(tmp_path / "d"), "--size", "8M")
    assert not (tmp_path / "d").exists()
    assert json.loads(daemon.ok("device", "list", "--json")) == []


def test_a_missing_device_degrades_only_its_volumes_and_comes_back_at_a_new_path(
    daemon: Daemon, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        daemon.ok("device", "add", str(tmp_path / name), "--size", "8M")
        daemon.ok("volume", "create", f"on-{name}", "--size", "1M", "--device", name)
    daemon.ok("snapshot", "create", "on-a", "--name", "s")
    daemon.service.stop()
    (tmp_path / "a").rename(tmp_path / "moved")
    daemon.start()
    assert exports(daemon) == ["on-a", "on-a@s", "on-b"]
    shown = json.loads(daemon.ok("volume", "show", "on-a", "--partitions", "--json"))
    assert (shown["state"], "does not exist" in shown["reason"]) == ("degraded", True)
    assert "(1 of 1 partitions faulty)" in shown["reason"]
    assert (shown["partitions"][0]["state"], shown["partitions"][0]["reason"][:19]) == (
        "faulty",
        "device a is missing",
    )
    assert state_of(daemon, "on-b") == "serving"
    assert "degraded" in daemon.ok("status")
    assert ("absent_device", 1, True) in daemon.world.calls
    daemon.ok("snapshot", "create", "on-a", "--name", "t")
    daemon.ok("snapshot", "delete", "on-a@t")
    assert "device a cannot be used" in daemon.refused(
        "volume", "create", "n", "--size", "1M", "--device", "a"
    )
    daemon.ok("device", "add", str(tmp_path / "moved"))
    assert exports(daemon) == ["on-a", "on-a@s", "on-b"]
    daemon.restart()
    assert exports(daemon) == ["on-a", "on-a@s", "on-b"]
    assert "device a, which is" in daemon.refused("device", "add", copy_of(tmp_path / "moved"))


def copy_of(path: Path) -> str:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    return str(copy)


def test_deleting_on_a_missing_device_ends_when_it_is_back(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("device", "add", str(tmp_path / "a"), "--size", "8M")
    daemon.ok("volume", "create", "v", "--size", "1M", "--device", "a")
    daemon.service.stop()
    (tmp_path / "a").rename(tmp_path / "moved")
    daemon.start()
    assert "could not be given back yet" in daemon.refused("volume", "delete", "v", "--yes")
    assert state_of(daemon, "v") == "deleting"
    daemon.ok("device", "add", str(tmp_path / "moved"))
    assert json.loads(daemon.ok("volume", "list", "--json")) == []


def test_a_wrong_disk_at_the_path_is_not_used(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("device", "add", str(tmp_path / "a"), "--size", "8M")
    daemon.ok("volume", "create", "v", "--size", "1M", "--device", "a")
    daemon.service.stop()
    (tmp_path / "a").write_bytes(b"someone else's" * MIB)
    daemon.start()
    assert state_of(daemon, "v") == "degraded"
    words = daemon.refused("device", "retry", "a")
    assert "device a cannot be used" in words
    assert "carries no label" in words
    assert (tmp_path / "a").read_bytes().startswith(b"someone else's")


def test_a_volume_that_the_engine_refuses_is_not_served_and_the_others_are_served(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "a", "--size", "1M")
    daemon.ok("volume", "create", "b", "--size", "1M")
    daemon.service.stop()
    daemon.world.fail["add_volume"] = 1
    daemon.start()
    assert (state_of(daemon, "a"), state_of(daemon, "b")) == ("serving", "not-served")
    daemon.world.fail.clear()


def test_the_api_answers_while_a_slow_change_is_under_way(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    held = daemon.world.hold["settle"] = threading.Event()
    taking = threading.Thread(target=daemon.ok, args=("snapshot", "create", "v", "--name", "s"))
    taking.start()
    try:
        while "settle" not in daemon.world.names():
            time.sleep(0.001)
        daemon.ok("status")
        assert json.loads(daemon.ok("snapshot", "list", "--json")) == []
    finally:
        held.set()
        taking.join()
    assert exports(daemon) == ["v", "v@s"]


def test_a_stop_waits_for_the_change_that_is_under_way(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    held = daemon.world.hold["flush"] = threading.Event()
    taking = threading.Thread(target=daemon.run, args=("snapshot", "create", "v", "--name", "s"))
    taking.start()
    while "flush" not in daemon.world.names():
        time.sleep(0.001)
    threading.Timer(0.1, held.set).start()
    daemon.service.stop()
    taking.join()
    assert daemon.world.names()[-1] == "stop"
    daemon.start()
    assert exports(daemon) == ["v", "v@s"]


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/status HTTP/1.1\r\nHost:", b"POST /v1/volumes HTTP/1.1\r\nContent-"]
)
def test_a_client_that_says_nothing_does_not_hold_up_a_stop(daemon: Daemon, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(daemon.state_dir / "control.sock"))
        client.sendall(sent)
        time.sleep(0.05)
        start = time.monotonic()
        daemon.service.stop()
        assert time.monotonic() - start < 5


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    world = SimWorld()
    (tmp_path / "control.sock").write_text("not a socket")
    with pytest.raises(SocketUnusable, match="not a socket"):
        Service(tmp_path, engine_module=world).start()
    (tmp_path / "control.sock").unlink()
    world.fail["listen"] = 0
    with pytest.raises(Exception, match="simulated failure of listen"):
        Service(tmp_path, engine_module=world).start()
    assert world.names()[-1] == "stop"
    names = {path.name for path in tmp_path.iterdir()}
    assert sorted(name for name in names if not name.startswith("reserve.")) == [
        "catalog.db",
        "catalog.mark",
        "devices",
        "lock",
        "manifests",
        "reserve",
        "volumes",
    ]
    world.fail.clear()
    service = Service(tmp_path, engine_module=world)
    service.start()
    service.stop()


def test_a_service_inside_another_front_end_has_no_nbd_socket(tmp_path: Path) -> None:
    service = Service(
        tmp_path, serve_nbd=False, frontend="nbdkit", nbd_addresses=["nbd://x"], engine_module=SimWorld()
    )
    starter = threading.Thread(target=service.start)
    starter.start()
    starter.join()
    assert service.status().daemon.frontend == "nbdkit"
    assert service.status().daemon.nbd == ["nbd://x"]
    assert not (tmp_path / "nbd.sock").exists()
    service.stop()


def test_processors_are_1_to_256(tmp_path: Path) -> None:
    for count in (0, 257):
        with pytest.raises(BadProcessors):
            Service(tmp_path, processors=count)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = sockets.bind_unix(path)
    with pytest.raises(SocketUnusable, match="somebody else"):
        sockets.bind_unix(path)
    first.close()
    assert path.exists()
    second = sockets.bind_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    second.close()
    with pytest.raises(SocketUnusable, match="longer than 107 bytes"):
        sockets.bind_unix(tmp_path / ("x" * 108))


def test_tcp_is_bound_on_every_address_of_the_host() -> None:
    for address, family, start in (
        ("127.0.0.1:0", socket.AF_INET, "nbd://127.0.0.1:"),
        ("[::1]:0", socket.AF_INET6, "nbd://[::1]:"),
    ):
        try:
            listeners = sockets.bind_tcp(address)
        except SocketUnusable:
            assert family == socket.AF_INET6, "a machine without IPv6 has IPv4"
            continue
        assert [listener.family for listener in listeners] == [family]
        assert sockets.nbd_uri(listeners[0]).startswith(start)
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":x", "::1:80", "h:70000", "h:" + "9" * 5000, "[::1]"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadConfig, match=r"is not HOST:PORT|a port is at most 65535"):
        sockets.split_address(address)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyudev's pipe is left open
def test_a_start_without_enough_threads_is_undone_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits on memory and processes keep each thread of a start in turn from being made."""
    start = threading.Thread.start
    left = 0

    def refused(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    for failing in range(1, 100):
        left, told = failing, ""
        service = Service(tmp_path / "state", processors=1, engine_module=SimWorld())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refused)
            try:
                service.start()
            except RuntimeError as refusal:
                told = str(as_error(refusal, "polyvold"))
        service.stop()
        if left > 0:
            break
        assert told.startswith("starting a thread failed: the limits on memory") or not told, failing
    assert 5 < failing < 99


def test_a_volume_whose_creation_ends_just_now_is_not_taken_for_a_half_made_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another `volume create` has seen it as 'creating', and gets its lock as soon as it is ready."""
    daemon.ok("volume", "create", "v", "--size", "1M")
    context = daemon.service._context
    as_it_was = [replace(each, state="creating") for each in context.catalog.volumes.all()]
    now, looks = context.catalog.volumes.all, iter([as_it_was])
    monkeypatch.setattr(context.catalog.volumes, "all", lambda: next(looks, None) or now())
    daemon.service.volumes._removal.settle_all()
    assert [(each.name, each.state) for each in now()] == [("v", "ready")]
    assert context.volume_trouble == {}
