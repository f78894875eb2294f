"""Block devices as devices, on a loop device where the machine lets us have one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    command = ["losetup", "--find", "--show", str(image)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device available here")
    path = Path(made.stdout.strip())
    yield path
    subprocess.run(["losetup", "--detach", str(path)], timeout=20, check=True)


def write(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)


def read(disk: Path, offset: int, length: int) -> bytes:
    with disk.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def test_an_empty_disk_is_taken_and_cleared_after_use(daemon: Daemon, disk: Path) -> None:
    assert "has a size of its own" in daemon.refused("device", "add", str(disk), "--size", "4M")
    daemon.ok("device", "add", str(disk), "--name", "disk")
    shown = json.loads(daemon.ok("device", "show", "disk", "--json"))
    assert (shown["kind"], shown["size"], shown["capacity"]) == ("block", 8 * MIB, 7 * MIB)
    daemon.ok("volume", "create", "v", "--size", "4M", "--device", "disk")
    write(disk, 2 * MIB, b"secret" * 1000)
    daemon.restart()
    daemon.ok("volume", "delete", "v", "--yes")
    assert not any(read(disk, MIB, 7 * MIB))
    assert read(disk, 0, 7) == b"POLYVOL"
    daemon.ok("device", "remove", "disk")
    assert not any(read(disk, 0, 4096))


def test_a_disk_with_data_is_taken_only_by_adoption(daemon: Daemon, disk: Path) -> None:
    write(disk, MIB - 512, b"data" * 128)
    before = read(disk, 0, 8 * MIB)
    assert "--adopt" in daemon.refused("device", "add", str(disk))
    daemon.ok("device", "add", str(disk), "--adopt", "--name", "old")
    daemon.ok("volume", "create", "v", "--base", "old")
    assert daemon.service.engine.open("v").pread(512, MIB - 512) == b"data" * 128
    assert read(disk, 0, 8 * MIB) == before
