"""polyvol attach where the kernel has no NBD: by nbdfuse and a loop device, and refusals."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from polyvol.daemon.client.attach import handshake
from polyvol.daemon.client.attach.address import Address, parse_uri
from polyvol.daemon.client.attach.errors import ExportRefused
from polyvol.daemon.client.attach.records import Places, Wanted
from tests.clients.attached import Host
from tests.support import fuse, nbd
from tests.support.daemon import BIN, Daemon
from tests.support.proc import Background, check, pause, run, wait_until

MIB = 1 << 20
HAS_NBD = Path("/sys/module/nbd").exists()
WITHOUT_SYSTEMD = not Path("/run/systemd/system").is_dir()


def test_a_volume_and_its_snapshot_are_attached_listed_and_detached(host: Host) -> None:
    daemon = host.daemon
    path = Path(host.ok("attach", "v", "--fuse", "--block-size", "4096").strip())
    try:
        assert path == host.root / "dev/polyvol/v"
        assert check("blockdev", "--getsize64", "--getro", "--getss", path).split() == [
            str(64 * MIB),
            "0",
            "4096",
        ]
        check("mkfs.ext4", "-q", path)
        with fuse.mount(path.resolve(), daemon.directory) as mounted:
            (mounted / "file").write_text("kept")
            check("sync", "-f", mounted)
            daemon.ok("snapshot", "create", "v", "--name", "s")
            (mounted / "file").write_text("changed")
            assert f"mounted at {mounted}" in host.refused("detach", "v")
            assert host.listed()["v"]["use"] == f"mounted at {mounted}"
            assert "attached already" in host.refused("attach", "v", "--fuse")
            snapshot = Path(host.ok("attach", "v@s", "--fuse").strip())
            assert host.listed()["v@s"]["read_only"] is True
            with fuse.mount(snapshot.resolve(), daemon.directory, "ro,noload", name="then") as then:
                assert (then / "file").read_text() == "kept"
            host.ok("detach", snapshot)
        device = host.listed()["v"]["device"]
        assert host.ok("detach", str(device)) == "v detached\n"
    finally:
        for name in ("v", "v@s"):
            run(BIN / "polyvol", "detach", name, "--force", env=host.env)
    assert host.listed() == {}
    assert [path for path in host.root.rglob("*") if not path.is_dir()] == []
    assert daemon.volume("v")["connections"] == 0
    assert "not attached" in host.refused("detach", "v")


@pytest.mark.slow
def test_a_device_that_somebody_uses_in_any_way_is_not_detached(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip())
    log = host.daemon.directory / "user.log"
    try:
        unused = run(BIN / "polyvol", "in-use", env=host.env)
        assert "is attached, and has no unit that would detach it; `polyvol detach v`" in unused.out
        check("mkfs.ext4", "-q", path)
        with Background("sh", "-c", "exec sleep 60 <$0", path, log=log):
            wait_until(lambda: host.listed()["v"]["use"] is not None, "the program's opening it")
            assert "is open by process" in host.refused("detach", "v")
            used = run(BIN / "polyvol", "in-use", env=host.env)
            assert used.rc == 1
            assert re.search(r"v \(/dev/loop\d+\) is open by process \d+ \(sleep\)", used.out)
        other = check("losetup", "--find", "--show", path.resolve()).strip()
        assert f"is under {other}" in host.refused("detach", "v")
        check("losetup", "--detach", other)
        elsewhere = host.daemon.directory / "elsewhere"
        elsewhere.mkdir()
        script = 'mount "$0" "$1" && exec sleep 60'
        with Background("unshare", "--mount", "sh", "-c", script, path.resolve(), elsewhere, log=log):
            wait_until(lambda: "mounted at" in str(host.listed()["v"]["use"]), "the mount")
            assert not fuse.mounted(elsewhere)
            said = host.refused("detach", "v")
            assert f"is mounted at {elsewhere} in the mount namespace of process" in said
        wait_until(lambda: host.listed()["v"]["use"] is None, "the end of that")
        assert host.ok("detach", "v") == "v detached\n"
    finally:
        run(BIN / "polyvol", "detach", "v", "--force", env=host.env)


def test_what_can_not_be_written_any_more_is_said_and_not_dropped(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip())
    try:
        host.daemon.kill()
        # Into the page cache; the kernel writes it when the last one closes the device, and cannot.
        run("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "conv=notrunc")
        for _ in range(2):  # the kernel tells of it once, polyvol each time
            said = host.refused("detach", "v")
            assert "not all data written to v" in said
            assert "input/output error" in said
        assert host.listed()["v"]["state"] == "dead"
        assert "its I/O fails" in str(host.listed()["v"]["trouble"])
    finally:
        forced = run(BIN / "polyvol", "detach", "v", "--force", env=host.env)
    assert (forced.rc, forced.out) == (0, "v detached by force: what was not written is lost\n")
    assert host.listed() == {}
    host.daemon.start()


def server_killed(host: Host) -> None:
    host.daemon.kill()


def nbdfuse_killed(host: Host) -> None:
    os.kill(host.nbdfuses()[0], signal.SIGKILL)


def client_disconnected(host: Host) -> None:
    host.daemon.ok("client", "disconnect", "--export", "v")


def volume_deleted(host: Host) -> None:
    client_disconnected(host)
    host.daemon.ok("volume", "delete", "v", "--yes")


@pytest.mark.parametrize(
    "dies",
    [
        server_killed,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (nbdfuse_killed, client_disconnected, volume_deleted)
        ),
    ],
)
def test_a_dead_device_that_nobody_uses_is_detached_with_a_warning(
    host: Host, dies: Callable[[Host], None]
) -> None:
    path = host.ok("attach", "v", "--fuse").strip()
    check("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "conv=notrunc,fsync")
    dies(host)
    wait_until(lambda: host.listed()["v"]["state"] == "dead", "the end of the device")
    done = run(BIN / "polyvol", "detach", "v", env=host.env)
    assert (done.rc, done.out) == (0, "v detached\n")
    assert done.err.startswith("warning: v was dead, because its ")
    assert done.err.endswith(
        ": writes that no flush followed are on the volume unless its server has lost them\n"
    )
    assert host.left() == []
    if not host.daemon.running:
        host.daemon.start()


@pytest.mark.slow
def test_a_device_whose_server_hangs_is_told_and_stays(host: Host) -> None:
    host.ok("attach", "v", "--fuse")
    pause(host.daemon.pid)
    try:
        listed = host.listed()["v"]
        assert listed["state"] == "no server"
        assert "it took too long; its I/O waits until one does" in str(listed["trouble"])
        assert "is without its daemon" in host.refused("detach", "v")
    finally:
        os.kill(host.daemon.pid, signal.SIGCONT)
    assert host.listed()["v"]["state"] == "attached"
    assert host.ok("detach", "v") == "v detached\n"


@pytest.mark.slow
def test_force_ends_a_device_with_unwritten_data_whose_server_hangs(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip())
    pause(host.daemon.pid)
    try:
        write = ("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "conv=notrunc")
        with Background(*write, log=host.daemon.directory / "dd.log") as dirty:
            status = Path(f"/proc/{dirty.pid}/status")
            wait_until(lambda: "\nState:\tD" in status.read_text(), "the program's waiting for the device")
            host.ok("detach", "v", "--force")
            dirty.wait()
        assert host.listed() == {}
    finally:
        os.kill(host.daemon.pid, signal.SIGCONT)


def test_after_a_detach_by_force_writes_fail(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip()).resolve()
    try:
        check("mkfs.ext4", "-q", path)
        with fuse.mount(path, host.daemon.directory) as mounted:
            (mounted / "file").write_text("kept")
            check("sync", "-f", mounted)
            said = host.ok("detach", "v", "--force")
            assert f"v detached by force; it was mounted at {mounted}" in said
            assert "what was not written is lost" in said
            wait_until(lambda: host.daemon.volume("v")["connections"] == 0, "the end of its connections")
            late = run("dd", "if=/dev/zero", f"of={mounted}/late", "bs=64k", "count=1", "conv=fsync")
            assert late.rc != 0
        assert host.listed() == {}
    finally:
        run(BIN / "polyvol", "detach", "v", "--force", env=host.env)


@pytest.mark.slow
def test_the_watch_takes_over_detaches_when_told_and_ends_with_nbdfuse(host: Host) -> None:
    places = Places(host.root)
    uri = nbd.uri("v", host.daemon.nbd_socket)
    places.write(Wanted(name="v", uri=uri, kind="fuse"))
    command = (BIN / "polyvol", "attach", "--watch", "v")
    link = host.root / "dev/polyvol/v"
    log = host.daemon.directory / "watch.log"
    with Background(*command, log=log, env=host.env) as first:
        first.wait_until(lambda: link.is_symlink() and "is attached as" in first.said(), "the link")
        first.signal(signal.SIGKILL)
        first.wait()
    with Background(*command, log=log, env=host.env) as second:
        second.wait_until(lambda: second.said().count("is attached as") == 2, "taking over")
        assert second.stop() == 0
    assert host.listed()["v"]["state"] == "not attached"
    assert not link.is_symlink()
    with Background(*command, log=log, env=host.env) as third:
        third.wait_until(link.is_symlink, "the link")
        now = places.now("v")
        assert now is not None
        assert now.pid is not None
        os.kill(now.pid, signal.SIGKILL)
        assert third.wait() == 1
        assert "nbdfuse has" in third.said() or "nbdfuse failed" in third.said()
    assert host.ok("detach", "v") == "v detached\n"
    assert host.listed() == {}


@pytest.mark.skipif(HAS_NBD, reason="this kernel has an NBD client")
def test_a_kernel_without_nbd_is_said_and_fuse_named(host: Host) -> None:
    assert "--fuse" in host.refused("attach", "v")
    assert host.listed() == {}


def test_what_cannot_be_attached_is_refused_and_leaves_nothing(host: Host) -> None:
    assert "no such export" in host.refused("attach", "nothing", "--fuse")
    assert "names neither" in host.refused("attach", "a@b@c", "--fuse")
    assert "cannot be used" in host.refused("attach", "v", "--fuse", "--uri", "nbds://host/v")
    assert "no NBD server answers" in host.refused("attach", "v", "--fuse", "--uri", "nbd://127.0.0.1:1/v")
    assert "is not attached" in host.refused("attach", "--watch", "v")
    assert not [path for path in host.root.rglob("*") if not path.is_dir()]


def test_the_server_tells_which_volume_it_is(daemon: Daemon) -> None:
    daemon.make_volume("v", size="64M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    address = parse_uri(nbd.uri("v", daemon.nbd_socket), "")
    channel, opened = handshake.open_export(address, 10)
    with channel:
        looked = handshake.look(address, 10)
        wait_until(lambda: daemon.volume("v")["connections"] == 1, "the connection's count")
    assert opened == looked
    assert (opened.size, opened.read_only, opened.multi_conn) == (64 * MIB, False, True)
    assert str(opened.uuid) == daemon.volume("v")["uuid"]
    of_snapshot = handshake.look(Address("v@s", socket=daemon.nbd_socket), 10)
    assert of_snapshot.read_only
    assert of_snapshot.uuid not in (None, opened.uuid)
    with pytest.raises(ExportRefused, match="no such export"):
        handshake.look(Address("nothing", socket=daemon.nbd_socket), 10)
