"""Devices: what is taken, what is refused, and that nothing is written to what is refused."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from polyvol.mapping import device as devices
from polyvol.mapping.device import Device, inspect, make_device, plan_device, trouble_with, zero_extents
from polyvol.mapping.errors import (
    DeviceMissing,
    DeviceNotEmpty,
    DeviceSizeGiven,
    DeviceTooSmall,
    DeviceUnaligned,
    DeviceUnusable,
    ForeignLabel,
    LabelDamaged,
    PolyvolError,
    UnalignedSize,
    ZeroSize,
)
from polyvol.mapping.extent import Extent

MIB = 1 << 20
CATALOG = UUID(int=9)
MakeFile = Callable[[str, int], Path]


def record(size: int, *, adopted: bool = False, sparse: bool = True) -> Device:
    return Device(1, uuid4(), "d", "d", "file", adopted, size, sparse, None, "ready", 7)


def labelled(path: Path, size: int = 4 * MIB) -> Device:
    device = record(size)
    make_device(device, path, CATALOG, preallocate=False)
    return device


def plan(path: Path, size: int | None = None, *, adopt: bool = False) -> tuple[str, int]:
    return plan_device(path, inspect(path), size=size, preallocate=False, adopt=adopt)


def test_a_file_that_is_missing_is_made_with_the_size_given(tmp_path: Path) -> None:
    path = tmp_path / "d"
    assert plan(path, 4 * MIB) == ("file", 4 * MIB)
    assert not path.exists()
    device = labelled(path)
    assert trouble_with(device, path, CATALOG) is None
    assert path.stat().st_size == 4 * MIB
    assert path.stat().st_blocks * 512 < MIB


def test_a_file_that_cannot_be_asked_for_its_data_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"data" * MIB)
    real = os.lseek

    def fails(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", fails)
    with pytest.raises(DeviceUnusable, match="Input/output error"):
        inspect(path)


def test_preallocated_means_that_the_space_is_there(tmp_path: Path) -> None:
    make_device(record(4 * MIB), tmp_path / "d", CATALOG, preallocate=True)
    assert (tmp_path / "d").stat().st_blocks * 512 >= 4 * MIB


@pytest.mark.parametrize(
    ("size", "error"), [(None, DeviceMissing), (0, ZeroSize), (5000, UnalignedSize), (MIB, DeviceTooSmall)]
)
def test_sizes_that_cannot_be_are_refused(
    tmp_path: Path, size: int | None, error: type[PolyvolError]
) -> None:
    with pytest.raises(error):
        plan(tmp_path / "d", size)
    assert not (tmp_path / "d").exists()


def test_a_file_with_data_is_taken_only_by_adoption(sparse_file: MakeFile) -> None:
    path = sparse_file("d", 4 * MIB)
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"data")
    with pytest.raises(DeviceNotEmpty, match="--adopt"):
        plan(path)
    assert plan(path, adopt=True) == ("file", 4 * MIB)


def test_a_file_of_nothing_but_holes_is_taken(sparse_file: MakeFile) -> None:
    assert plan(sparse_file("d", 4 * MIB)) == ("file", 4 * MIB)
    assert plan(sparse_file("empty", 0), 4 * MIB) == ("file", 4 * MIB)
    with pytest.raises(DeviceSizeGiven):
        plan(sparse_file("e", 4 * MIB), 8 * MIB)


def test_an_adopted_size_must_be_whole_blocks(sparse_file: MakeFile) -> None:
    with pytest.raises(DeviceUnaligned, match="truncate -s 8192"):
        plan(sparse_file("d", 5000), adopt=True)
    with pytest.raises(ZeroSize):
        plan(sparse_file("e", 0), adopt=True)


@pytest.mark.parametrize("adopt", [False, True])
def test_a_label_protects_its_device(tmp_path: Path, adopt: bool) -> None:
    path = tmp_path / "d"
    labelled(path)
    with pytest.raises(ForeignLabel):
        plan(path, adopt=adopt)
    with path.open("r+b") as file:
        file.seek(50)
        file.write(b"x")
    with pytest.raises(LabelDamaged):
        plan(path, adopt=adopt)


def test_a_folder_or_a_pipe_is_no_device(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DeviceUnusable):
            inspect(path)


def test_a_wrong_device_is_told_from_the_right_one(tmp_path: Path, sparse_file: MakeFile) -> None:
    path = tmp_path / "d"
    device = labelled(path)
    assert "does not exist" in (trouble_with(device, tmp_path / "x", CATALOG) or "")
    assert "no label" in (trouble_with(device, sparse_file("z", 4 * MIB), CATALOG) or "")
    labelled(tmp_path / "other")
    assert "another device" in (trouble_with(device, tmp_path / "other", CATALOG) or "")
    assert "another device" in (trouble_with(device, path, UUID(int=8)) or "")
    with path.open("r+b") as file:
        file.truncate(2 * MIB)
    assert "was 4194304" in (trouble_with(device, path, CATALOG) or "")
    adopted = record(MIB, adopted=True)
    assert trouble_with(adopted, sparse_file("a", MIB), CATALOG) is None
    assert "was 1048576" in (trouble_with(adopted, sparse_file("a", 2 * MIB), CATALOG) or "")


@pytest.mark.parametrize("sparse", [True, False])
def test_cleared_extents_read_as_zeros_and_only_they(tmp_path: Path, sparse: bool) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x" * (4 * MIB))
    zero_extents(record(4 * MIB, sparse=sparse), path, [Extent(1, MIB, MIB), Extent(1, 3 * MIB, 4096)])
    data = path.read_bytes()
    assert data[:MIB] == b"x" * MIB
    assert not any(data[MIB : 2 * MIB])
    assert data[2 * MIB : 3 * MIB] == b"x" * MIB
    assert not any(data[3 * MIB : 3 * MIB + 4096])
    assert data[3 * MIB + 4096 :] == b"x" * (MIB - 4096)
    assert (path.stat().st_blocks * 512 < 4 * MIB) == sparse


def test_clearing_a_label_leaves_other_labels_alone(tmp_path: Path) -> None:
    path = tmp_path / "d"
    device = labelled(path)
    devices.clear_label(record(4 * MIB), path, CATALOG)
    assert trouble_with(device, path, CATALOG) is None
    devices.clear_label(device, path, CATALOG)
    assert plan(path) == ("file", 4 * MIB)
