"""What is told of a device of the kernel's NBD client: sysfs is this test's, the server is real or gone."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from polyvol.daemon.client.attach import disks, handshake, units, verbs
from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.errors import AttachedInUse
from polyvol.daemon.client.attach.records import Attached, Places, Wanted
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import pause

Make = Callable[..., Daemon]


class Kernel:
    """A host whose kernel has the device nbd7 for a daemon's volume v."""

    def __init__(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        self.daemon = daemon
        self.places = Places(daemon.directory / "root")
        sysfs = daemon.directory / "sysfs"
        (sysfs / "nbd7").mkdir(parents=True)
        for name, text in {"pid": "1", "backend": "polyvol/v", "size": "16384", "ro": "0"}.items():
            (sysfs / "nbd7" / name).write_text(f"{text}\n")
        monkeypatch.setattr(disks, "SYSFS", sysfs)
        self.uri = nbd.uri("v", daemon.nbd_socket)
        self.attached()

    def attached(self) -> None:
        """Remember what the server says now."""
        told = handshake.look(parse_uri(self.uri, ""), 10)
        uuid = str(told.uuid)
        now = Attached(
            name="v", device="nbd7", kind="nbd", size=told.size, flags=told.flags, uuid=uuid, uri=self.uri
        )
        self.places.write(now)

    def state(self) -> tuple[str, str | None]:
        [view] = verbs.list_all(self.places)
        assert view.uri == self.uri
        return view.state, view.trouble


@pytest.fixture
def kernel(make_daemon: Make, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    daemon = make_daemon()
    daemon.make_volume("v", size="8M", partition_size="1M")
    return Kernel(daemon, monkeypatch)


def test_one_with_its_server_is_attached(kernel: Kernel) -> None:
    assert kernel.state() == ("attached", None)
    kernel.daemon.ok("volume", "grow", "v", "--size", "16M")
    assert kernel.state() == ("attached", None), "the kernel's client follows"


def test_one_whose_server_is_gone_is_told_and_not_detached(kernel: Kernel) -> None:
    kernel.places.write(Wanted(name="v", uri=kernel.uri, dead_timeout_s=77))
    kernel.daemon.kill()
    state, trouble = kernel.state()
    assert state == "no server"
    assert "; its I/O waits until one does, for 77 s at most" in str(trouble)
    if os.geteuid() == 0:
        with pytest.raises(AttachedInUse, match="without its daemon"):
            verbs.detach(kernel.places, "v", force=False)
    kernel.daemon.start()
    assert kernel.state() == ("attached", None)


def test_one_whose_server_hangs_is_told(kernel: Kernel) -> None:
    pause(kernel.daemon.pid)
    try:
        state, trouble = kernel.state()
    finally:
        os.kill(kernel.daemon.pid, signal.SIGCONT)
    assert state == "no server"
    assert "it took too long" in str(trouble)


def test_one_whose_export_is_gone_or_another_is_told(kernel: Kernel) -> None:
    kernel.daemon.ok("volume", "delete", "v", "--yes")
    state, trouble = kernel.state()
    assert state == "no export"
    assert "there is no such export" in str(trouble)
    kernel.daemon.ok("volume", "create", "v", "--size", "8M", "--device", "v-0", "--log-device", "v-log")
    state, trouble = kernel.state()
    assert state == "no export"
    assert "it has another UUID" in str(trouble)


def test_one_whose_unit_does_not_run_is_told(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.places.write(Wanted(name="v", uri=kernel.uri))
    monkeypatch.setattr(units, "available", lambda: True)
    monkeypatch.setattr(units, "active", lambda name: False)
    state, trouble = kernel.state()
    assert state == "attached"
    assert "`systemctl start polyvol-attach@v.service`" in str(trouble)


def test_servers_that_are_not_to_be_asked_are_not(kernel: Kernel) -> None:
    kernel.daemon.kill()
    [view] = verbs.list_all(kernel.places, ask=False)
    assert view.state == "attached"
    kernel.daemon.start()


def test_a_record_of_before_is_read(tmp_path: Path) -> None:
    record = tmp_path / "run/polyvol/attached/v.json"
    record.parent.mkdir(parents=True)
    record.write_text(
        '{"name": "v", "device": "nbd7", "kind": "nbd", "size": 1, "flags": 0, "uuid": null, "pid": 3}'
    )
    assert Places(tmp_path).now("v") == Attached(name="v", device="nbd7", kind="nbd", size=1, flags=0, pid=3)
