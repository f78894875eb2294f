"""What `polyvol device add` refuses of disks: loop devices with file systems, tables, volume groups."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyvol.mapping import occupied
from polyvol.mapping.errors import DeviceUnusable, DiskInUse
from polyvol.mapping.opening import open_file
from tests.unit.conftest import Daemon

MIB = 1 << 20


def system(*command: str | Path, stdin: str = "") -> str:
    path = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PATH": path},
    )
    return done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    try:
        path = Path(system("losetup", "--find", "--show", image).strip())
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device available here")
    yield path
    system("losetup", "--detach", path)


def with_ext4(disk: Path) -> None:
    system("mke2fs", "-q", "-t", "ext4", disk)


def with_gpt(disk: Path) -> None:
    system("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, stdin="label: gpt\nsize=8M\n")


def with_only_the_backup_of_gpt(disk: Path) -> None:
    with_gpt(disk)
    with disk.open("r+b", buffering=0) as file:
        file.write(bytes(MIB))


def with_lvm(disk: Path) -> None:
    system("pvcreate", "-qq", "--yes", disk)


def with_swap(disk: Path) -> None:
    system("mkswap", disk)


MADE: list[tuple[Callable[[Path], None], str]] = [
    (with_ext4, "an ext4 file system"),
    (with_gpt, "a partition table (gpt)"),
    (with_only_the_backup_of_gpt, "a partition table (gpt)"),
    (with_lvm, "a member of RAID or LVM (LVM2_member)"),
    (with_swap, "swap data"),
]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(*each, marks=() if each[0] in (with_ext4, with_lvm) else pytest.mark.slow)
        for each in MADE
    ],
)
def test_what_is_on_a_disk_is_said_and_it_is_refused(
    daemon: Daemon, disk: Path, make: Callable[[Path], None], words: str
) -> None:
    make(disk)
    before = disk.read_bytes()
    assert f"{disk} has {words}" in daemon.refused("device", "add", str(disk))
    assert disk.read_bytes() == before
    daemon.ok("device", "add", str(disk), "--adopt", "--name", "old")
    assert disk.read_bytes() == before
    daemon.ok("device", "remove", "old")
    daemon.ok("device", "add", str(disk), "--force", "--name", "new")
    with open_file(disk, write=False, hold=False) as file:
        assert occupied.contents_of(file) is None
    assert disk.read_bytes()[:7] == b"POLYVOL"


def test_a_mounted_disk_is_refused_whatever_is_asked(daemon: Daemon, disk: Path, tmp_path: Path) -> None:
    with_ext4(disk)
    where = tmp_path / "a b"
    where.mkdir()
    system("mount", disk, where)
    try:
        for option in ([], ["--force"], ["--adopt"]):
            assert f"{disk} is mounted at {where}" in daemon.refused("device", "add", str(disk), *option)
    finally:
        system("umount", where)


def test_a_disk_that_somebody_has_alone_is_refused(daemon: Daemon, disk: Path) -> None:
    descriptor = os.open(disk, os.O_RDONLY | os.O_EXCL)
    try:
        assert "holds it exclusively" in daemon.refused("device", "add", str(disk), "--force")
    finally:
        os.close(descriptor)
    daemon.ok("device", "add", str(disk))


def test_data_without_a_signature_and_labels_give_way_to_force_only(daemon: Daemon, disk: Path) -> None:
    disk.write_bytes(b"data" * 1024)
    assert "has data on it" in daemon.refused("device", "add", str(disk))
    disk.write_bytes(b"POLYVOL\x01" + b"damaged" * 512)
    assert "damaged" in daemon.refused("device", "add", str(disk))
    assert "damaged" in daemon.refused("device", "add", str(disk), "--adopt")
    daemon.ok("device", "add", str(disk), "--force")


def test_what_is_on_a_file_is_told(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"")
    os.truncate(path, 8 << 20)
    with_ext4(path)
    said = daemon.refused("device", "add", str(path))
    assert f"{path} has an ext4 file system on it; use --adopt to take it with its data, or --force" in said
    path.write_bytes(b"data" * 1024)
    assert "has data on it" in daemon.refused("device", "add", str(path))


def test_a_file_that_cannot_be_looked_at_is_refused_all_the_same(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise DeviceUnusable(path=tmp_path, why="wipefs is not installed")

    path = tmp_path / "image"
    path.write_bytes(b"data" * 1024)
    monkeypatch.setattr(occupied, "contents_of", fails)
    assert "has data on it" in daemon.refused("device", "add", str(path))


def test_a_device_of_ours_does_not_give_way_to_force(daemon: Daemon, disk: Path) -> None:
    daemon.ok("device", "add", str(disk), "--name", "disk")
    assert "is device disk already" in daemon.refused("device", "add", str(disk), "--force")


def test_holders_and_swap_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in (("sdx", "8:0"), ("sdx/sdx1", "8:1"), ("dm-3", "253:3")):
        (tmp_path / name / "holders").mkdir(parents=True)
        (tmp_path / name / "dev").write_text(f"{numbers}\n")
    monkeypatch.setattr(occupied, "SYSFS", tmp_path)
    monkeypatch.setattr(occupied, "SWAPS", tmp_path / "swaps")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")
    assert occupied.in_use_by("sdx") is None
    (tmp_path / "sdx/sdx1/holders/dm-3/dm").mkdir(parents=True)
    (tmp_path / "sdx/sdx1/holders/dm-3/dm/name").write_text("vg-root\n")
    assert occupied.in_use_by("sdx") == "part of vg-root"
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/sdx1 partition 1 0 -2\n")
    assert occupied.in_use_by("sdx") == "used as swap"


def test_a_disk_that_is_in_use_is_no_target_of_a_copy(disk: Path) -> None:
    from polyvol.daemon.client.transfer.target import open_target

    holder = os.open(disk, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(DiskInUse, match=f"{disk} is in use by another program"):
            open_target(str(disk))
    finally:
        os.close(holder)
    open_target(str(disk)).close()
