"""Devices that are opened once: other files at their paths, other names of them, older copies, holders."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.devices import verbs as devices
from polyvol.daemon.devices.mounts import MountWatch
from polyvol.daemon.service import Service
from polyvol.mapping import device
from polyvol.mapping.label import unpack
from polyvol.mapping.opening import open_file
from tests.support.catalogs import change
from tests.support.proc import wait_until
from tests.support.sim_engine import SimWorld
from tests.unit.conftest import Daemon
from tests.unit.daemon.test_occupied_disks import disk, system
from tests.unit.mapping.test_label import version_1

__all__ = ["disk"]  # a fixture
MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for, and a missing device comes back only when a test asks for it: mounts that other
    tests make at the same time would have it looked for."""
    monkeypatch.setattr(devices, "START_PATIENCE_S", 0.05)
    monkeypatch.setattr(MountWatch, "look", lambda _: None)


def add(daemon: Daemon, path: Path, *options: str) -> None:
    daemon.ok("device", "add", str(path), *(options or ("--size", "160M")))


def shown(daemon: Daemon, name: str = "d") -> dict[str, Any]:
    view: dict[str, Any] = json.loads(daemon.ok("device", "show", name, "--json"))
    return view


def trouble(daemon: Daemon, name: str = "d") -> str:
    """Why a device is missing."""
    view = shown(daemon, name)
    assert view["state"] == "missing"
    return str(view["reason"])


def make_volume(daemon: Daemon, name: str = "v") -> None:
    daemon.ok("volume", "create", name, "--size", "1M", "--device", "d", "--log-device", "d")


@contextmanager
def second(daemon: Daemon, state_dir: Path) -> Iterator[Daemon]:
    """A daemon on a copy of another's state directory."""
    world = SimWorld()
    other = Daemon(state_dir, world, Service(state_dir, processors=2, engine_module=world))
    other.service.start()
    try:
        yield other
    finally:
        other.service.stop()


@pytest.mark.slow
def test_another_file_at_a_devices_path_is_told_and_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    add(daemon, path)
    make_volume(daemon)
    path.rename(tmp_path / "moved")
    told = "what was opened there is used until polyvold stops: put it back before"
    assert shown(daemon)["reason"] == f"nothing is at its path any more; {told}"
    path.write_bytes(b"PRECIOUS" * (20 * MIB))
    view = shown(daemon)
    assert view["state"] == "ok"
    assert view["reason"] == f"its path shows another file now; {told}"
    with (tmp_path / "moved").open("r+b") as file:
        file.seek(MIB)
        file.write(b"SECRET" * 1000)
    daemon.ok("volume", "delete", "v", "--yes")
    assert b"SECRET" not in (tmp_path / "moved").read_bytes()
    assert "carries no label" in daemon.refused("device", "retry", "d")
    daemon.ok("device", "remove", "d")
    assert path.read_bytes() == b"PRECIOUS" * (20 * MIB)
    assert not any((tmp_path / "moved").read_bytes()[:4096])


def test_a_file_made_for_a_volume_is_removed_and_no_other(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    made = daemon.state_dir / "devices/v.data"
    made.rename(tmp_path / "moved")
    made.write_bytes(b"PRECIOUS")
    daemon.ok("volume", "delete", "v", "--yes")
    assert made.read_bytes() == b"PRECIOUS"
    words = daemon.refused("volume", "create", "v", "--size", "1M")
    assert f"{made} cannot be used as a device: something else appeared there" in words
    assert made.read_bytes() == b"PRECIOUS"
    made.unlink()
    daemon.ok("volume", "create", "v", "--size", "1M")


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("again", [["--adopt"], ["--force"], []])
def test_a_second_name_of_a_device_is_refused(
    daemon: Daemon, tmp_path: Path, again: list[str], adopted: bool
) -> None:
    path, link = tmp_path / "d", tmp_path / "link"
    if adopted:
        path.write_bytes(b"data" * MIB)
    add(daemon, path, *(["--adopt"] if adopted else []))
    link.hardlink_to(path)
    (tmp_path / "symlink").symlink_to(path)
    for name in ("link", "symlink"):
        assert "is device d already" in daemon.refused("device", "add", str(tmp_path / name), *again)
    path.rename(tmp_path / "moved")  # also where the first name has gone
    assert "is device d already" in daemon.refused("device", "add", str(link), *again)
    daemon.service.stop()
    (tmp_path / "moved").unlink()
    daemon.start()
    assert "does not exist" in trouble(daemon)
    daemon.ok("device", "add", str(link), *again)  # it is known, and back
    assert (shown(daemon)["state"], shown(daemon)["path"]) == ("ok", str(link))
    assert len(json.loads(daemon.ok("device", "list", "--json"))) == 1


def test_an_adopted_device_whose_path_shows_a_copy_is_missing(daemon: Daemon, tmp_path: Path) -> None:
    path, copy = tmp_path / "d", tmp_path / "copy"
    path.write_bytes(b"data" * MIB)
    with open_file(path) as file:
        from polyvol.mapping.identity import lasting_identity

        if lasting_identity(file) is None:
            pytest.skip("this file system does not say when a file was born")
    add(daemon, path, "--adopt")
    daemon.service.stop()
    shutil.copy(path, copy)
    copy.replace(path)
    daemon.start()
    assert "is not the file that was adopted" in trouble(daemon)
    assert "is not the file" in daemon.refused("device", "retry", "d")
    daemon.ok("device", "retry", "d", "--accept")
    daemon.restart()
    assert shown(daemon)["state"] == "ok"


def test_the_other_number_of_an_adopted_disk_is_refused(
    daemon: Daemon, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "lasting_identity", lambda _: "disk naa.5000")
    add(daemon, disk, "--adopt", "--name", "d")
    (tmp_path / "second").write_bytes(bytes(64 * MIB))
    other = Path(system("losetup", "--find", "--show", tmp_path / "second").strip())
    try:
        for options in ([], ["--adopt"], ["--force"]):
            assert "is device d already" in daemon.refused("device", "add", str(other), *options)
    finally:
        system("losetup", "--detach", other)


def test_an_adopted_disk_is_known_at_another_path(
    daemon: Daemon, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "lasting_identity", lambda _: "disk naa.5000")
    link = tmp_path / "link"
    link.symlink_to(disk)
    add(daemon, link, "--adopt", "--name", "d")
    daemon.service.stop()
    link.unlink()
    daemon.start()
    assert "does not exist" in trouble(daemon)
    view = daemon.service.disk_came(disk)
    assert view is not None
    assert (view.name, view.path, view.state) == ("d", str(disk), "ok")


@pytest.mark.slow
def test_a_copy_of_a_device_that_is_open_does_not_take_its_place(daemon: Daemon, tmp_path: Path) -> None:
    add(daemon, tmp_path / "d")
    shutil.copy(tmp_path / "d", tmp_path / "copy")
    words = daemon.refused("device", "retry", "d", "--path", str(tmp_path / "copy"))
    assert "is a copy of it" in words
    assert shown(daemon)["path"] == str(tmp_path / "d")
    daemon.ok("device", "retry", "d", "--path", str(tmp_path / "copy"), "--accept")
    assert shown(daemon)["path"] == str(tmp_path / "copy")


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.slow
def test_of_two_copies_of_a_state_directory_the_older_is_refused(
    daemon: Daemon, tmp_path: Path, adopted: bool
) -> None:
    if adopted:
        (tmp_path / "d").write_bytes(b"data" * MIB)
        add(daemon, tmp_path / "d", "--adopt")
        if not has_attributes(tmp_path / "d"):
            pytest.skip("this file system has no extended attributes")
        daemon.ok("volume", "create", "v", "--base", "d")
    else:
        add(daemon, tmp_path / "d")
        make_volume(daemon)
    running = tmp_path / "running"
    shutil.copytree(daemon.state_dir, running, ignore=lambda *_: ["control.sock", "nbd.sock"])
    daemon.service.stop()
    with second(daemon, running) as other:
        assert "so this one is older" in trouble(other)
    stopped = tmp_path / "stopped"
    shutil.copytree(daemon.state_dir, stopped)
    daemon.start()
    for state_dir in (running, stopped):
        with second(daemon, state_dir) as other:
            assert "in use by another program" in trouble(other)
            assert "in use by another program" in other.refused("device", "retry", "d")
    daemon.service.stop()
    for state_dir in (running, stopped):
        for _ in range(3):  # starting it often does not make it newer
            with second(daemon, state_dir) as other:
                assert "another copy of this state directory" in trouble(other)
                assert "so this one is older" in other.refused("device", "retry", "d")
    with second(daemon, stopped) as other:
        other.ok("device", "retry", "d", "--accept")
        assert shown(other)["state"] == "ok"
    with second(daemon, stopped) as other:
        assert shown(other)["state"] == "ok"
    daemon.start()
    assert "so this one is older" in trouble(daemon)
    assert not adopted or (tmp_path / "d").read_bytes() == b"data" * MIB


def has_attributes(path: Path) -> bool:
    return device.ASIDE in os.listxattr(path)


def test_a_file_that_another_polyvol_has_adopted_meanwhile_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"data" * MIB)
    add(daemon, path, "--adopt")
    if not has_attributes(path):
        pytest.skip("this file system has no extended attributes")
    daemon.service.stop()
    with second(daemon, tmp_path / "other") as other:
        add(other, path, "--adopt", "--name", "theirs")
    daemon.start()
    assert "has since been adopted by another polyvol" in trouble(daemon)
    with second(daemon, tmp_path / "other") as other:
        other.ok("device", "remove", "theirs")
    assert not has_attributes(path)
    daemon.ok("device", "retry", "d")
    os.setxattr(path, device.ASIDE, os.getxattr(path, device.ASIDE)[:-1] + b"x")
    daemon.restart()
    assert "attribute of" in trouble(daemon)
    daemon.ok("device", "retry", "d", "--accept")
    daemon.ok("device", "remove", "d")
    assert path.read_bytes() == b"data" * MIB


def test_a_device_that_was_brought_back_by_somebody_else_is_left_alone(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The watch finds a missing device's file, and waits for the device while a retry brings it back."""
    path = tmp_path / "d"
    path.write_bytes(b"data" * MIB)
    add(daemon, path, "--adopt")
    daemon.service.stop()
    path.rename(tmp_path / "away")
    daemon.start()
    (tmp_path / "away").rename(path)
    service, context = daemon.service, daemon.service._context
    device = context.find_device("d")
    waits = [lambda: service.file_appeared(device.id), lambda: service.disk_came(path)]
    with ThreadPoolExecutor() as threads:
        with context.holding_device(device, "a verb"):
            found = [threads.submit(wait) for wait in waits]
            [holder] = context.locks.held()
            wait_until(lambda: context.locks.waiting(holder) == len(waits), "the watches wait")
            context.device_trouble.pop(device.id)  # as a retry does
            daemon.world.calls.clear()
        assert [each.result(30) for each in found] == [None, None]
    assert "reopen_device" not in daemon.world.names()


def test_a_stop_waits_for_devices_that_are_being_tried() -> None:
    trying, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def found(_: int) -> None:
        trying.set()
        assert may_end.wait(30)
        ended.set()

    watch = MountWatch(lambda: {1: Path(__file__)}, found)
    watch.start()
    watch._probes.run(1, lambda: watch._look_at(1, Path(__file__)))
    assert trying.wait(30)
    threading.Timer(0.2, may_end.set).start()
    watch.stop()
    assert ended.is_set()
    assert not watch._tries.run(1, lambda: None), "nothing is tried after a stop"


@pytest.mark.slow
def test_an_older_copy_of_a_device_is_refused_until_it_is_accepted(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    add(daemon, path)
    daemon.service.stop()
    shutil.copy(path, tmp_path / "older")
    daemon.start()
    daemon.service.stop()
    path.rename(tmp_path / "newer")
    (tmp_path / "older").rename(path)
    daemon.start()
    assert "is an older copy of the device" in trouble(daemon)
    daemon.ok("device", "retry", "d", "--path", str(tmp_path / "newer"))
    daemon.service.stop()
    daemon.start()
    assert shown(daemon)["state"] == "ok"
    daemon.service.stop()
    (tmp_path / "newer").unlink()
    daemon.start()
    assert "older copy" in daemon.refused("device", "retry", "d", "--path", str(path))
    daemon.ok("device", "retry", "d", "--path", str(path), "--accept")
    daemon.restart()
    assert shown(daemon)["state"] == "ok"


def test_a_device_that_was_away_for_some_starts_comes_back(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    add(daemon, path)
    daemon.service.stop()
    path.rename(tmp_path / "away")
    for _ in range(3):
        daemon.start()
        assert "does not exist" in trouble(daemon)
        daemon.service.stop()
    (tmp_path / "away").rename(path)
    daemon.start()
    assert shown(daemon)["state"] == "ok"


def test_a_label_of_version_1_is_replaced_by_a_start(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    add(daemon, path)
    daemon.service.stop()
    new = unpack(path.read_bytes()[:4096])
    with path.open("r+b") as file:
        file.write(version_1(new))
    daemon.start()
    assert "older copy" in trouble(daemon), "it had a label of version 2 already"
    daemon.service.stop()
    migrated = "UPDATE device SET runs = '', generation = 0"
    change(daemon.state_dir / "catalog.db", migrated)
    daemon.start()
    assert shown(daemon)["state"] == "ok"
    label = unpack(path.read_bytes()[:4096])
    assert (label.device, label.created_ns, label.generation > 0) == (new.device, new.created_ns, True)


@pytest.mark.parametrize("killed_after", ["begin", "write_label"])
def test_a_kill_around_the_labels_of_a_start_is_no_trouble(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    from polyvol.daemon.devices import files as device_files

    add(daemon, tmp_path / "d")
    daemon.service.stop()

    class Killed(BaseException):
        pass

    def killed(*arguments: object, **options: object) -> None:
        if killed_after == "write_label":
            real(*arguments, **options)  # type: ignore[arg-type]
        raise Killed

    real = device.write_label
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(device_files, "write_label", killed)
            patch.setattr(device_files, "end_run", lambda _: None)
            with pytest.raises(Killed):
                daemon.start()
    daemon.start()
    assert shown(daemon)["state"] == "ok"


def test_a_label_that_cannot_be_written_is_told_and_the_device_used(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(daemon, tmp_path / "d")
    daemon.service.stop()
    with monkeypatch.context() as patch:
        patch.setattr(device, "_write_all", fail)
        daemon.start()
        daemon.service.stop()
        daemon.start()
    assert shown(daemon)["state"] == "ok"
    assert "device d: writing the label of" in daemon.ok("status")
    daemon.restart()
    assert shown(daemon)["state"] == "ok"


def fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_what_somebody_else_has_at_start_is_missing_until_it_is_free(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    add(daemon, path)
    make_volume(daemon)
    daemon.service.stop()
    with open_file(path):
        daemon.start()
        assert "in use by another program, which holds it exclusively" in trouble(daemon)
        assert json.loads(daemon.ok("volume", "show", "v", "--json"))["state"] == "degraded"
        assert "in use by another program" in daemon.refused("device", "retry", "d")
        assert "in use by another program" in daemon.refused("volume", "delete", "v", "--yes")
    daemon.ok("device", "retry", "d")
    assert json.loads(daemon.ok("status", "--json"))["devices"][0]["state"] == "ok"


def test_a_file_that_a_loop_device_is_over_is_refused(daemon: Daemon, disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert "is the file of loop" in daemon.refused("device", "add", str(image), "--adopt")
    add(daemon, disk, "--name", "d")
    assert "is the same storage as device d" in daemon.refused("device", "add", str(image), "--adopt")


def test_a_loop_device_over_a_device_is_refused(daemon: Daemon, tmp_path: Path, disk: Path) -> None:
    add(daemon, tmp_path / "d")
    loop = Path(system("losetup", "--find", "--show", tmp_path / "d").strip())
    try:
        for options in ([], ["--force"], ["--adopt"]):
            words = daemon.refused("device", "add", str(loop), *options)
            assert "is the same storage as device d, or a part of it" in words
    finally:
        system("losetup", "--detach", loop)


@pytest.mark.parametrize("use", ["mounted", "claimed"])
def test_a_start_leaves_a_disk_that_is_in_use_to_its_user(
    daemon: Daemon, disk: Path, tmp_path: Path, use: str
) -> None:
    add(daemon, disk, "--name", "d")
    daemon.service.stop()
    if use == "mounted":
        label = disk.read_bytes()[:4096]
        system("mke2fs", "-q", "-t", "ext4", disk)
        where = tmp_path / "mounted"
        where.mkdir()
        system("mount", disk, where)
        try:
            daemon.start()
            assert f"{disk} is mounted at {where}" in trouble(daemon)
            assert f"is mounted at {where}" in daemon.refused("device", "retry", "d")
        finally:
            system("umount", where)
        with disk.open("r+b") as file:
            file.write(label)
    else:
        with open_file(disk):
            daemon.start()
            assert "in use by another program" in trouble(daemon)
    daemon.ok("device", "retry", "d")
    assert shown(daemon)["state"] == "ok"


def test_a_link_put_in_the_way_of_a_new_file_is_not_followed(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "d"
    victim.write_bytes(b"PRECIOUS" * 512)
    real = device.inspect

    def raced(at: Path) -> object:
        found = real(at)
        path.symlink_to(victim)
        return found

    monkeypatch.setattr(devices, "inspect", raced)
    words = daemon.refused("device", "add", str(path), "--size", "8M")
    assert "something else appeared there" in words
    path.unlink()
    path.write_bytes(bytes(2 * MIB))

    def replaced(at: Path) -> object:
        found = real(at)
        path.unlink()
        path.hardlink_to(victim)
        return found

    monkeypatch.setattr(devices, "inspect", replaced)
    assert "it was replaced while" in daemon.refused("device", "add", str(path), "--force")
    assert victim.read_bytes() == b"PRECIOUS" * 512
    assert json.loads(daemon.ok("device", "list", "--json")) == []
