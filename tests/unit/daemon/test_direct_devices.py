"""Devices that are used past the page cache: added, refused, and opened so each time."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import direct
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon
from tests.unit.daemon.test_occupied_disks import MIB, system
from tests.unit.mapping.test_direct import refuse


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes an empty loop device with sectors of so many bytes."""
    with ExitStack() as stack:

        def make(sector: int) -> Path:
            image = tmp_path / f"sectors-{sector}"
            with image.open("wb") as file:
                file.truncate(16 * MIB)
            try:
                size = ("--sector-size", str(sector))
                disk = Path(system("losetup", "--find", "--show", *size, image).strip())
            except (OSError, subprocess.CalledProcessError):
                pytest.skip(f"no loop device with sectors of {sector} bytes available here")
            stack.callback(system, "losetup", "--detach", disk)
            return disk

        yield make


def in_engine(daemon: Daemon) -> set[int]:
    """The devices that the engine has past the page cache, by id."""
    engine = daemon.service.engine
    assert isinstance(engine, SimEngine)
    return engine.direct


def shown(daemon: Daemon) -> dict[str, bool]:
    return {each["name"]: each["direct"] for each in json.loads(daemon.ok("device", "list", "--json"))}


def test_what_is_added_so_is_shown_so_and_opened_so_each_time(daemon: Daemon, tmp_path: Path) -> None:
    direct.needed(tmp_path)
    (tmp_path / "base").write_bytes(bytes(range(256)) * 4096)
    daemon.ok("device", "add", str(tmp_path / "base"), "--adopt", "--direct")
    daemon.ok("device", "add", str(tmp_path / "log"), "--size", "80M", "--direct")
    daemon.ok("device", "add", str(tmp_path / "cached"), "--size", "80M")
    daemon.ok("volume", "create", "v", "--base", "base", "--log-device", "log")
    daemon.ok("volume", "create", "w", "--size", "1M")
    daemon.ok("volume", "add-log", "w", "--size", "64M")
    assert {name for name, is_direct in shown(daemon).items() if is_direct} == {"base", "log"}
    for name, word in (("log", "yes"), ("cached", "no")):
        facts = [line.split() for line in daemon.ok("device", "show", name).splitlines()]
        assert ["direct:", word] in facts
    assert in_engine(daemon) == {1, 2}
    daemon.restart()
    assert in_engine(daemon) == {1, 2}
    assert daemon.service.engine.open("v").pread(4, 4) == bytes([4, 5, 6, 7])
    daemon.ok("device", "retry", "log")
    assert in_engine(daemon) == {1, 2}


def test_one_that_is_missing_comes_back_as_it_was(daemon: Daemon, tmp_path: Path) -> None:
    direct.needed(tmp_path)
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M", "--direct")
    daemon.service.stop()
    (tmp_path / "d").rename(tmp_path / "moved")
    daemon.start()
    assert in_engine(daemon) == {1}, "it is absent, and what it will be is known"
    daemon.ok("device", "add", str(tmp_path / "moved"))
    assert in_engine(daemon) == {1}
    assert shown(daemon) == {"d": True}


@pytest.mark.parametrize("kind", ["adopted", "new", "preallocated"])
def test_where_the_file_system_refuses_it_nothing_has_changed(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "files" / "d"
    path.parent.mkdir()
    options = {
        "adopted": ["--adopt"],
        "new": ["--size", "8M"],
        "preallocated": ["--size", "8M", "--preallocate"],
    }
    if kind == "adopted":
        path.write_bytes(b"data" * MIB)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        refuse(patch, "open", errno.EINVAL)
        words = daemon.refused("device", "add", str(path), *options[kind], "--direct")
    assert words.startswith(
        f"{path} cannot be used past the page cache: its file system does not take O_DIRECT;"
    )
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    assert shown(daemon) == {}
    assert "open_device" not in daemon.world.names()
    daemon.ok("device", "add", str(path), *options[kind])
    assert shown(daemon) == {"d": False}


def test_one_whose_file_system_has_lost_it_is_missing_with_the_reason(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct.needed(tmp_path)
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M", "--direct")
    daemon.service.stop()
    with monkeypatch.context() as patch:
        refuse(patch, "open", errno.EINVAL)
        daemon.start()
        view = json.loads(daemon.ok("device", "show", "d", "--json"))
        assert (view["state"], view["reason"]) == (
            "missing",
            f"{tmp_path / 'd'}: {os.strerror(errno.EINVAL)}",
        )
        assert "opening device d again failed" in daemon.refused("device", "retry", "d")
    daemon.ok("device", "retry", "d")
    assert in_engine(daemon) == {1}


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_disk_with_sectors_up_to_4096_is_taken(
    daemon: Daemon, disk_of: Callable[[int], Path], sector: int
) -> None:
    disk = disk_of(sector)
    daemon.ok("device", "add", str(disk), "--name", "disk", "--direct")
    assert shown(daemon) == {"disk": True}
    assert disk.read_bytes()[:7] == b"POLYVOL"


def test_a_disk_with_larger_sectors_is_refused_and_not_written_to(
    daemon: Daemon, disk_of: Callable[[int], Path]
) -> None:
    disk = disk_of(8192)
    words = daemon.refused("device", "add", str(disk), "--name", "disk", "--direct", "--force")
    assert "it does not take single blocks of 4096 bytes with O_DIRECT" in words
    assert not any(disk.read_bytes())
    daemon.ok("device", "add", str(disk), "--name", "disk")
