"""Who uses a block device, by a /proc and a sysfs that are made up; and what a shutdown waits for."""

import errno
import os
from pathlib import Path

import pytest

from polyvol.daemon.client.attach import units, users, watch
from polyvol.daemon.client.attach.errors import AttachedInUse, NotWritten
from polyvol.daemon.client.attach.records import Attached

ROOT_MOUNT = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
NOW = Attached(name="v", device="nbd0", kind="nbd", size=4096, flags=0)


class Host:
    """A host with the disk nbd0, which has one partition, and the process `self`."""

    def __init__(self, root: Path) -> None:
        self.proc, self.block = root / "proc", root / "block"
        for name, number in (("nbd0", "43:0"), ("nbd0/nbd0p1", "43:1"), ("nbd1", "43:32")):
            (self.block / name / "holders").mkdir(parents=True)
            (self.block / name / "dev").write_text(f"{number}\n")
        self.process("self", "mnt:[1]", ROOT_MOUNT)
        (self.proc / "swaps").write_text("Filename\tType\n")

    def process(self, name: str, space: str, mounts: str) -> Path:
        process = self.proc / name
        (process / "ns").mkdir(parents=True)
        (process / "fd").mkdir()
        (process / "ns/mnt").symlink_to(space)
        (process / "mountinfo").write_text(mounts)
        (process / "comm").write_text("dd\n")
        return process


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(users, "PROC", host.proc)
    monkeypatch.setattr(users, "SYSFS", host.block)
    monkeypatch.setattr(users, "OPEN_S", 0.0)
    return host


def users_of_nbd0() -> list[str]:
    return users.users_of("nbd0", patience_s=0)


def test_a_device_that_nobody_uses(host: Host) -> None:
    host.process("7", "mnt:[1]", ROOT_MOUNT)
    (host.proc / "self/mountinfo").write_text(ROOT_MOUNT + "30 1 43:32 / /other rw - ext4 /dev/nbd1 rw\n")
    assert users_of_nbd0() == []


@pytest.mark.parametrize("name", ["self/mountinfo", "swaps"])
def test_what_cannot_be_looked_at_may_be_in_use(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read = Path.read_text

    def fails(path: Path, *arguments: str, **named: str) -> str:
        if path == host.proc / name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", fails)
    [found] = users_of_nbd0()
    assert found.startswith(f"perhaps in use, because {host.proc / name} cannot be read (")


def test_mounts_count_in_every_mount_namespace_and_of_partitions(host: Host) -> None:
    (host.proc / "self/mountinfo").write_text(ROOT_MOUNT + "30 1 43:1 / /a\\040b rw - ext4 /dev/nbd0p1 rw\n")
    host.process("7", "mnt:[2]", ROOT_MOUNT + "31 1 43:1 / /a\\040b rw - ext4 /dev/nbd0p1 rw\n")
    host.process("8", "mnt:[3]", ROOT_MOUNT + "32 1 43:0 / /in rw - xfs /dev/nbd0 rw\n")
    host.process("9", "mnt:[3]", ROOT_MOUNT + "32 1 43:0 / /in rw - xfs /dev/nbd0 rw\n")
    assert users_of_nbd0()[0] == "mounted at /a b"
    [elsewhere] = users_of_nbd0()[1:]
    assert elsewhere in (f"mounted at /in in the mount namespace of process {pid} (dd)" for pid in (8, 9))


def test_swap_holders_and_loop_devices_count(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.proc / "swaps").write_text("Filename\tType\n/dev/nbd0 partition 1 0 -2\n")
    (host.block / "nbd0p1").symlink_to(host.block / "nbd0/nbd0p1")
    (host.block / "nbd0/nbd0p1/holders/dm-3").mkdir()
    (host.block / "nbd0/nbd0p1/holders/dm-3/dm").mkdir()
    (host.block / "nbd0/nbd0p1/holders/dm-3/dm/name").write_text("vg-root\n")
    (host.block / "loop4/loop").mkdir(parents=True)
    (host.block / "loop4/loop/backing_file").write_text("/dev/nbd0\n")
    numbers = {"/dev/nbd0": os.makedev(43, 0), "/dev/polyvol/v": os.makedev(43, 0)}
    monkeypatch.setattr(users, "_number", lambda path: numbers.get(str(path)))
    assert users_of_nbd0() == ["used as swap", "part of vg-root", "under /dev/loop4"]
    (host.proc / "swaps").write_text("Filename\tType\n/dev/polyvol/v partition 1 0 -2\n")
    assert users_of_nbd0()[0] == "used as swap"


def test_programs_that_have_it_open_count(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    number = os.makedev(43, 0)
    monkeypatch.setattr(users, "_number", lambda path: number if path.name == "3" else None)
    for pid in range(20, 25):
        process = host.process(str(pid), "mnt:[1]", ROOT_MOUNT)
        (process / "fd/1").symlink_to("pipe:[7]")
        (process / "fd/3").symlink_to("/dev/nbd0")
    found = users_of_nbd0()
    assert len(found) == users.OPENERS_MAX
    assert all(clause.startswith("open by process 2") and clause.endswith(" (dd)") for clause in found)


def ending(monkeypatch: pytest.MonkeyPatch, uses: list[list[str]], *, shutting_down: bool) -> list[str]:
    """What `watch` does at its end with a device whose users are these, in the order of its looks."""
    done: list[str] = []
    monkeypatch.setattr(watch, "release", lambda device: done.append("released"))
    monkeypatch.setattr(watch, "users_of", lambda device: uses.pop(0) if len(uses) > 1 else uses[0])
    monkeypatch.setattr(watch, "SHUTDOWN_LOOK_S", 0.01)
    monkeypatch.setattr(units, "shutting_down", lambda: shutting_down)
    error = watch._end(NOW, lambda: done.append("detached"))
    return [*done, *([] if error is None else [type(error).__name__])]


def test_a_used_device_is_not_ended_but_a_shutdown_releases_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mounted = ["mounted at /x"]
    assert ending(monkeypatch, [[]], shutting_down=False) == ["detached"]
    assert ending(monkeypatch, [mounted, []], shutting_down=False) == [AttachedInUse.__name__]
    found = ending(monkeypatch, [mounted, mounted, []], shutting_down=True)
    assert found == ["released", "released", "detached"]
    monkeypatch.setattr(watch, "SHUTDOWN_S", 0.05)
    found = ending(monkeypatch, [mounted], shutting_down=True)
    assert set(found[:-1]) == {"released"}
    assert found[-1] == AttachedInUse.__name__


def test_a_release_unmounts_the_last_mount_first_and_ends_swap(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(users, "_run", lambda *command: said.append(tuple(map(str, command))))
    mounts = "30 1 43:0 / /a rw - ext4 /dev/nbd0 rw\n31 1 43:1 / /a/b rw - ext4 /dev/nbd0p1 rw\n"
    (host.proc / "self/mountinfo").write_text(ROOT_MOUNT + mounts)
    (host.proc / "swaps").write_text(
        "Filename\tType\n/dev/nbd0 partition 1 0 -2\n/dev/sdb partition 1 0 -2\n"
    )
    users.release("nbd0")
    assert said == [("umount", "/a/b"), ("umount", "/a"), ("swapoff", "/dev/nbd0")]


def test_what_cannot_be_written_keeps_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise NotWritten(name="v", device="/dev/nbd0", why="Input/output error")

    monkeypatch.setattr(watch, "users_of", lambda device: [])
    assert isinstance(watch._end(NOW, fails), NotWritten)
