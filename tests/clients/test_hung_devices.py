"""test_hung_devices: a disk whose driver does not answer, and a daemon that goes on for everybody else.

How it works      The disk is a file over nbdfuse, whose process is stopped: calls on the file then wait in
                  the kernel until it is continued.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.client import ApiError
from tests.support import fuse, nbd
from tests.support.daemon import Daemon
from tests.support.proc import Background, pause, wait_until

MIB = 1 << 20
SOON_S = 20.0


class Disk:
    """A file that can be made to hang."""

    def __init__(self, path: Path, driver: Background) -> None:
        self.path = path
        self._driver = driver

    def hang(self) -> None:
        """From now on no call on it returns."""
        pause(self._driver.pid)

    def go_on(self) -> None:
        """All that waits goes on."""
        os.kill(self._driver.pid, signal.SIGCONT)


@contextmanager
def disk(directory: Path) -> Iterator[Disk]:
    """A disk of 1 GiB in memory."""
    fuse.needed()
    path, socket = directory / "hung.disk", directory / "nbdkit.sock"
    path.touch()
    with Background("nbdkit", "-f", "-U", socket, "memory", "1G", log=directory / "nbdkit.log") as server:
        server.wait_until(socket.exists, "nbdkit's socket", 20)
        with Background("nbdfuse", path, nbd.uri("", socket), log=directory / "nbdfuse.log") as driver:
            found = Disk(path, driver)
            try:
                driver.wait_until(lambda: fuse.mounted(path), "the mount by nbdfuse", 20)
                yield found
            finally:
                found.go_on()
                fuse.unmount(path)
                driver.wait()


@pytest.mark.slow
def test_a_disk_that_hangs_holds_up_nobody_else(daemon: Daemon) -> None:
    with disk(daemon.directory) as hung:
        daemon.add_devices("log", size="80M")
        daemon.api.post("devices", body={"path": str(hung.path), "name": "h", "force": True})
        on = {"devices": ["h"], "log_devices": ["h"]}
        daemon.api.post("volumes", body={"name": "hung", "size": 64 * MIB, **on})
        daemon.api.post("volumes", body={"name": "well", "size": 64 * MIB, "log_devices": ["log"]})
        with nbd.connect(daemon.uri("hung")) as handle:
            handle.pwrite(bytes(4096), 0)
        taking = threading.Thread(target=_take, args=(daemon, "hung"), daemon=True)
        safety = threading.Timer(3 * SOON_S, hung.go_on)  # the test must end, also if the daemon hangs too
        hung.hang()
        try:
            safety.start()
            taking.start()
            wait_until(lambda: _busy(daemon) == ["hung"], "the snapshot that hangs", SOON_S)
            with nbd.connect(daemon.uri("well")) as handle:
                for number in range(6):  # more than its log has room for
                    _take(daemon, "well", name=f"s{number}", scheduled=True)
                    for at in range(20):
                        handle.pwrite(os.urandom(MIB), at * MIB)
            assert daemon.volume("well")["dropped"], "room was made"
            os.kill(daemon.pid, signal.SIGHUP)
            began = time.monotonic()
            for path in ("status", "volumes", "snapshots", "devices", "schedules", "groups"):
                daemon.api.get(path)
            assert time.monotonic() - began < SOON_S
            daemon.api.delete("volumes", "well")
            assert _busy(daemon) == ["hung"]
            assert safety.is_alive()
        finally:
            safety.cancel()
            hung.go_on()
        taking.join(SOON_S)
        assert not taking.is_alive()
        wait_until(lambda: _busy(daemon) == [], "the end of what hung", SOON_S)
        daemon.stop()


@pytest.mark.slow
def test_a_start_waits_for_a_disk_that_hangs_only_for_a_while(daemon: Daemon) -> None:
    with disk(daemon.directory) as hung:
        daemon.api.post("devices", body={"path": str(hung.path), "name": "h", "force": True})
        on = {"devices": ["h"], "log_devices": ["h"]}
        daemon.api.post("volumes", body={"name": "hung", "size": 64 * MIB, **on})
        daemon.api.post("volumes", body={"name": "well", "size": 64 * MIB})
        for name in ("hung", "well"):
            with nbd.connect(daemon.uri(name)) as handle:
                handle.pwrite(b"x" * 4096, 0)
        daemon.stop()
        safety = threading.Timer(3 * SOON_S, hung.go_on)
        hung.hang()
        try:
            safety.start()
            daemon.start()
            assert safety.is_alive()
            with nbd.connect(daemon.uri("well")) as handle:
                assert handle.pread(4096, 0) == b"x" * 4096
            assert daemon.api.get("devices", "h")["reason"].endswith("hung.disk does not answer")
            assert daemon.volume("hung")["state"] == "degraded"
        finally:
            safety.cancel()
            hung.go_on()
        wait_until(lambda: daemon.volume("hung")["state"] == "serving", "the disk to be back", SOON_S)
        with nbd.connect(daemon.uri("hung")) as handle:
            assert handle.pread(4096, 0) == b"x" * 4096
        daemon.stop()


def _take(daemon: Daemon, volume: str, **options: object) -> None:
    with suppress(ApiError):  # it may have been given up
        daemon.api.post("snapshots", body={"volumes": [volume], **options})


def _busy(daemon: Daemon) -> list[str]:
    return [name for each in daemon.api.get("status")["operations"] for name in each["volumes"]]


ALLOWED = {
    *("name-in-use", "unknown-volume", "unknown-snapshot", "unknown-group", "unknown-device", "volume-busy"),
    *("volume-changed", "group-changed", "device-not-ready"),
    *(
        "group-busy",
        "device-busy",
        "volume-in-group",
        "volume-held",
        "group-has-snapshots",
        "group-empty",
        "not-in-group",
    ),
    *("snapshot-in-group", "unknown-group-snapshot", "unknown-schedule", "snapshot-held", "not-held"),
    *(
        "device-in-use",
        "delete-unfinished",
        "disk-in-use",
        "not-larger",
        "too-many-logs",
        "volume-not-served",
    ),
}
"""What a verb may be refused with when others are at work on the same objects."""


class Asking:
    """A client that asks for anything, by chance."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._api = daemon.api
        self._directory = daemon.directory
        self._draw = random.Random(seed)
        self.done = 0
        self.refused: list[str] = []

    def run(self, until: float) -> None:
        """Ask until then."""
        verbs = [value for name, value in vars(Asking).items() if name.startswith("_ask_")]
        while time.monotonic() < until:
            try:
                self._draw.choice(verbs)(self)
                self.done += 1
            except ApiError as error:
                self.refused.append(error.code if error.code in ALLOWED else f"{error.code}: {error}")

    def _volume(self) -> str:
        return f"v{self._draw.randrange(4)}"

    def _snapshot(self) -> str:
        return f"s{self._draw.randrange(3)}"

    def _ask_create(self) -> None:
        self._api.post("volumes", body={"name": self._volume(), "size": MIB, "partition_size": MIB})

    def _ask_delete(self) -> None:
        self._api.delete("volumes", self._volume())

    def _ask_clone(self) -> None:
        name = self._snapshot()
        self._api.post("volumes", self._volume(), "snapshots", name, "clones", body={"name": self._volume()})

    def _ask_take(self) -> None:
        self._api.post("snapshots", body={"volumes": [self._volume()], "name": self._snapshot()})

    def _ask_take_two(self) -> None:
        volumes = sorted({self._volume(), self._volume()})
        self._api.post("snapshots", body={"volumes": volumes, "name": self._snapshot()})

    def _ask_drop(self) -> None:
        self._api.delete("volumes", self._volume(), "snapshots", self._snapshot())

    def _ask_drop_many(self) -> None:
        self._api.post("volumes", self._volume(), "deletions", body={"names": ["s*"]})

    def _ask_roll_back(self) -> None:
        path = ("volumes", self._volume(), "snapshots", self._snapshot(), "rollback")
        self._api.post(*path, body={"safety": False})

    def _ask_hold(self) -> None:
        path = ("volumes", self._volume(), "snapshots", self._snapshot(), "holds")
        self._api.post(*path, body={"tag": "t", "release": self._draw.random() < 0.6})

    def _ask_grow(self) -> None:
        size = self._draw.randrange(2, 5) * MIB
        self._api.post("volumes", self._volume(), "growth", body={"size": size})

    def _ask_add_log(self) -> None:
        self._api.post("volumes", self._volume(), "logs", body={"size": 64 * MIB})

    def _ask_group(self) -> None:
        self._api.post("groups", body={"name": "g", "volumes": [self._volume()]})

    def _ask_ungroup(self) -> None:
        self._api.delete("groups", "g")

    def _ask_take_group(self) -> None:
        self._api.post("groups", "g", "snapshots", body={"name": self._snapshot()})

    def _ask_drop_group(self) -> None:
        self._api.delete("groups", "g", "snapshots", self._snapshot())

    def _ask_add_device(self) -> None:
        name = f"d{self._draw.randrange(2)}"
        path = self._directory / f"{name}.img"
        size = None if path.exists() else 8 * MIB
        with suppress(ApiError):  # which size is right depends on who is first
            self._api.post("devices", body={"path": str(path), "name": name, "size": size, "force": True})

    def _ask_retry_device(self) -> None:
        self._api.post("devices", f"d{self._draw.randrange(2)}", "retry", body={})

    def _ask_remove_device(self) -> None:
        self._api.delete("devices", f"d{self._draw.randrange(2)}")

    def _ask_look(self) -> None:
        for path in ("status", "volumes", "snapshots", "devices"):
            self._api.get(path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_verbs_at_once_leave_nothing_locked_or_broken(daemon: Daemon, seed: int) -> None:
    clients = [Asking(daemon, 100 * seed + number) for number in range(8)]
    until = time.monotonic() + 6
    threads = [threading.Thread(target=client.run, args=(until,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a verb does not end"
    refused = [code for client in clients for code in client.refused if code not in ALLOWED]
    assert not refused, refused[:5]
    assert sum(client.done for client in clients) > 50
    wait_until(lambda: daemon.api.get("status")["operations"] == [], "the end of all", SOON_S)
    assert "Traceback" not in daemon.said()
    daemon.restart()
    assert {each["state"] for each in daemon.api.get("volumes")} <= {"serving"}
    daemon.stop()
    daemon.ok("check")
