"""test_late_devices: files that are not there, or not as they were, when polyvold starts.

How it works      A device's file is moved away, or its directory mounted over, before a start, and comes back
                  while polyvold runs. An adopted image grows between two starts.
Errors            What mounts is skipped where that is not allowed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.nbd import connect
from tests.support.proc import run, wait_until

MIB = 1 << 20


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    """Mounts are undone by it."""
    with ExitStack() as undo:
        yield undo


def made(daemon: Daemon, path: Path) -> None:
    """Volume v on device d at this path, with something on it; polyvold is stopped."""
    path.parent.mkdir()
    daemon.ok("device", "add", path, "--name", "d", "--size", "100M")
    daemon.ok("volume", "create", "v", "--size", "8M", "--device", "d", "--log-device", "d")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 4096, 0)
    daemon.stop()


def is_back(daemon: Daemon) -> None:
    """The device is used again, without anybody asking for it."""
    wait_until(lambda: daemon.volume("v")["state"] == "serving", "the volume to be served again", 20)
    with connect(daemon.uri("v")) as host:
        assert host.pread(4096, 0) == b"a" * 4096
    assert "device d is back" in str(daemon.api.get("status")["events"])


def test_a_file_system_that_is_mounted_late(daemon: Daemon, short_dir: Path, mounts: ExitStack) -> None:
    path, cover = short_dir / "there" / "d.img", short_dir / "cover"
    made(daemon, path)
    cover.mkdir()
    if run("mount", "--bind", cover, path.parent).rc != 0:
        pytest.skip("mounting is not allowed here")
    mounts.callback(run, "umount", "--lazy", path.parent)
    daemon.start()
    assert daemon.volume("v")["state"] == "degraded"
    run("umount", path.parent)
    is_back(daemon)


@pytest.mark.slow
def test_a_file_that_comes_late_and_others_that_are_not_it(daemon: Daemon, short_dir: Path) -> None:
    path = short_dir / "there" / "d.img"
    made(daemon, path)
    path.rename(short_dir / "away")
    daemon.start()
    path.write_bytes(bytes(100 * MIB))
    reason = "d.img carries no label"
    wait_until(lambda: "d.img" in daemon.api.get("devices", "d")["reason"], "a reason")
    assert reason in daemon.refused("device", "retry", "d")
    path.unlink()
    (short_dir / "away").rename(path)
    is_back(daemon)


@pytest.mark.parametrize("served", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_adopted_image_that_grew_is_served_as_it_was(
    daemon: Daemon, short_dir: Path, served: bool
) -> None:
    image = short_dir / "gold.img"
    image.write_bytes(os.urandom(8 * MIB))
    daemon.ok("device", "add", image, "--adopt", "--name", "gold")
    daemon.ok("volume", "create", "v", "--base", "gold")
    if not served:
        daemon.stop()
    os.truncate(image, 12 * MIB)
    if served:
        daemon.stop()
    daemon.start()
    assert daemon.volume("v")["state"] == "serving"
    device = daemon.api.get("devices", "gold")
    assert (device["state"], device["size"]) == ("ok", 8 * MIB)
    assert "it has grown to 12 MiB, of which the first 8 MiB are used" in device["reason"]
    with connect(daemon.uri("v")) as host:
        assert host.get_size() == 8 * MIB
        assert host.pread(8 * MIB, 0) == image.read_bytes()[: 8 * MIB]
    os.truncate(image, 8 * MIB)
    daemon.stop()
    daemon.start()
    assert daemon.api.get("devices", "gold")["reason"] is None


def test_a_longer_image_that_is_another_one_is_refused(daemon: Daemon, short_dir: Path) -> None:
    image = short_dir / "gold.img"
    image.write_bytes(b"a" * MIB)
    daemon.ok("device", "add", image, "--adopt", "--name", "gold")
    daemon.ok("volume", "create", "v", "--base", "gold")
    daemon.stop()
    shutil.copy(image, short_dir / "copy")
    os.truncate(short_dir / "copy", 2 * MIB)
    (short_dir / "copy").rename(image)
    daemon.start()
    assert daemon.volume("v")["state"] == "degraded"
    assert (
        "nothing tells whether it has grown or is another one" in daemon.api.get("devices", "gold")["reason"]
    )
    daemon.ok("device", "retry", "gold", "--accept")
    assert daemon.volume("v")["state"] == "serving"
