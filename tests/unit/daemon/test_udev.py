"""Disks that go and come back: the kernel's own news of loop devices, and news put into its mouth."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from polyvol.daemon.devices.udev import DiskWatch
from tests.support.proc import run, wait_until
from tests.unit.conftest import Daemon
from tests.unit.daemon.test_occupied_disks import MIB, system

NOTICED_S = 5.0
"""Noticed in a second is meant; these tests run beside others."""


class Disks:
    """Loop devices over images by name. What is plugged is ours until it is unplugged: its number may then be
    another test's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._plugged: list[Path] = []

    def plug(self, name: str, at: Path | None = None) -> Path:
        """As a device that is free, or as this one as soon as it is free."""
        image = self._directory / name
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(16 * MIB)
        if at is None:
            try:
                at = Path(system("losetup", "--find", "--show", image).strip())
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("no loop device available here")
        else:
            device = at
            wait_until(lambda: run("losetup", device, image).rc == 0, f"{at} to be free", 20)
        self._plugged.append(at)
        return at

    def unplug(self, path: Path) -> None:
        self._plugged.remove(path)
        system("losetup", "--detach", path)

    def close(self) -> None:
        for path in list(self._plugged):
            self.unplug(path)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    with closing(Disks(tmp_path)) as disks:
        yield disks


def shown(daemon: Daemon, name: str) -> tuple[str, str]:
    told = json.loads(daemon.ok("device", "show", name, "--json"))
    return told["state"], told["path"]


def test_a_missing_disk_that_appears_elsewhere_comes_back_by_itself(daemon: Daemon, disks: Disks) -> None:
    before = disks.plug("disk")
    daemon.ok("device", "add", str(before), "--name", "disk")
    daemon.ok("volume", "create", "v", "--size", "8M", "--device", "disk")
    daemon.service.stop()
    disks.unplug(before)
    disks.plug("other", at=before)
    daemon.start()
    assert shown(daemon, "disk")[0] == "missing"
    now = disks.plug("disk")
    wait_until(lambda: shown(daemon, "disk") == ("ok", str(now)), "the disk's return", NOTICED_S)
    assert json.loads(daemon.ok("volume", "show", "v", "--json"))["state"] == "serving"
    events = json.loads(daemon.ok("status", "--json"))["events"]
    assert events[-1]["text"] == f"device disk is back: {now}"


def test_a_disk_that_goes_is_missing_and_one_that_comes_is_taken(daemon: Daemon, disks: Disks) -> None:
    disk = disks.plug("disk")
    daemon.ok("device", "add", str(disk), "--name", "disk")
    daemon.ok("device", "add", str(disks.plug("other")), "--name", "other")
    watch = DiskWatch(daemon.service.disk_gone, daemon.service.disk_came)
    number = disk.stat().st_rdev
    watch.happened("remove", disk, number + 1000)
    watch.happened("change", disk, number)
    assert shown(daemon, "disk")[0] == "ok"
    watch.happened("remove", disk, number)
    assert shown(daemon, "disk")[0] == "missing"
    assert "is gone" in json.loads(daemon.ok("device", "show", "disk", "--json"))["reason"]
    assert shown(daemon, "other")[0] == "ok"
    watch.happened("remove", disk, number)
    watch.happened("add", Path("/dev/nothing-there"), number)
    watch.happened("add", Path("/dev/null"), number)
    assert shown(daemon, "disk")[0] == "missing"
    watch.happened("add", disk, number)
    assert shown(daemon, "disk") == ("ok", str(disk))
    events = [event["text"] for event in json.loads(daemon.ok("status", "--json"))["events"]]
    assert events == ["device disk is gone: its disk was taken out", f"device disk is back: {disk}"]


def test_an_adopted_disk_comes_back_at_its_own_path_only(
    daemon: Daemon, disks: Disks, tmp_path: Path
) -> None:
    disk, other = disks.plug("disk"), disks.plug("other")
    link = tmp_path / "by-id"
    link.symlink_to(disk)
    daemon.ok("device", "add", str(link), "--adopt", "--name", "old")
    watch = DiskWatch(daemon.service.disk_gone, daemon.service.disk_came)
    watch.happened("remove", disk, disk.stat().st_rdev)
    watch.happened("add", other, other.stat().st_rdev)
    assert shown(daemon, "old")[0] == "missing"
    watch.happened("add", disk, disk.stat().st_rdev)
    assert shown(daemon, "old") == ("ok", str(link))


def test_the_watch_sleeps_while_nothing_happens_and_ends_when_told() -> None:
    watch = DiskWatch(lambda _: None, lambda _: None)
    threads = threading.active_count()
    watch.start()
    try:
        assert threading.active_count() == threads + 1
        (thread,) = [each for each in threading.enumerate() if each.name == "polyvol-udev"]
        # Other tests' loop devices may wake it sometimes; a watch that polls is woken each time.
        assert any(is_asleep(thread) for _ in range(40))
    finally:
        watch.stop()
    assert threading.active_count() == threads


def is_asleep(thread: threading.Thread) -> bool:
    """Whether a thread does nothing for half a second."""
    before = switches(thread)
    time.sleep(0.5)
    return switches(thread) == before


def switches(thread: threading.Thread) -> int:
    status = Path(f"/proc/{os.getpid()}/task/{thread.native_id}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("voluntary")))


def test_news_that_cannot_be_dealt_with_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise ValueError("of ours")

    watch = DiskWatch(broken, broken)
    watch.happened("add", Path("/dev/x"), 1)
    watch.happened("remove", Path("/dev/x"), 1)
    watch.happened("bind", Path("/dev/x"), 1)
    assert caplog.text.count("could not be dealt with") == 2
