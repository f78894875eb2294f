"""Devices: what is taken, what is refused, and that nothing is written to what is refused."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from polyvol.mapping import device as devices
from polyvol.mapping.device import (
    inspect,
    inspect_open,
    make_device,
    plan_device,
    trouble_at,
    trouble_with,
    write_label,
    zero_extents,
)
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
from polyvol.mapping.label import NO_RUN, Label
from polyvol.mapping.opening import create_file, open_file
from polyvol.mapping.records.devices import Device
from tests.unit.mapping.test_label import version_1

MIB = 1 << 20
CATALOG = UUID(int=9)
MakeFile = Callable[[str, int], Path]


def record(size: int, *, adopted: bool = False, sparse: bool = True) -> Device:
    return Device(1, uuid4(), "d", "d", "file", adopted, size, sparse, None, "ready", 7)


def labelled(path: Path, size: int = 4 * MIB) -> Device:
    device = record(size)
    with create_file(path) as file:
        make_device(device, file, CATALOG, NO_RUN, preallocate=False)
    return device


def plan(path: Path, size: int | None = None, *, adopt: bool = False) -> tuple[str, int]:
    return plan_device(path, inspect(path), size=size, preallocate=False, adopt=adopt)


def test_a_file_that_is_missing_is_made_with_the_size_given(tmp_path: Path) -> None:
    path = tmp_path / "d"
    assert plan(path, 4 * MIB) == ("file", 4 * MIB)
    assert not path.exists()
    device = labelled(path)
    assert trouble_at(device, path, CATALOG) is None
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
    with pytest.raises(DeviceUnusable, match="input/output error"):
        inspect(path)


def test_preallocated_means_that_the_space_is_there(tmp_path: Path) -> None:
    with create_file(tmp_path / "d") as file:
        make_device(record(4 * MIB), file, CATALOG, NO_RUN, preallocate=True)
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
    with pytest.raises(DeviceUnaligned, match="truncate -s 8K"):
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
    assert "does not exist" in (trouble_at(device, tmp_path / "x", CATALOG) or "")
    assert "no label" in (trouble_at(device, sparse_file("z", 4 * MIB), CATALOG) or "")
    labelled(tmp_path / "other")
    assert "another device" in (trouble_at(device, tmp_path / "other", CATALOG) or "")
    assert "another device" in (trouble_at(device, path, UUID(int=8)) or "")
    with path.open("r+b") as file:
        file.truncate(2 * MIB)
    assert "had 4 MiB" in (trouble_at(device, path, CATALOG) or "")
    adopted = record(MIB, adopted=True)
    assert trouble_at(adopted, sparse_file("a", MIB), CATALOG) is None
    assert "had 1 MiB when it was adopted" in (trouble_at(adopted, sparse_file("a", 2 * MIB), CATALOG) or "")


@pytest.mark.parametrize("sparse", [True, False])
def test_cleared_extents_read_as_zeros_and_only_they(tmp_path: Path, sparse: bool) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x" * (4 * MIB))
    with open_file(path) as file:
        zero_extents(record(4 * MIB, sparse=sparse), file, [Extent(1, MIB, MIB), Extent(1, 3 * MIB, 4096)])
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
    with open_file(path) as file:
        devices.clear_label(record(4 * MIB), file, CATALOG)
        assert trouble_with(device, inspect_open(file), CATALOG) is None
        assert "in use by another program" in (trouble_at(device, path, CATALOG) or "")
        devices.clear_label(device, file, CATALOG)
    assert plan(path) == ("file", 4 * MIB)


def of_run(device: Device, path: Path, run: UUID, generation: int) -> None:
    with open_file(path) as file:
        write_label(device, file, CATALOG, generation, run)


def test_a_label_of_another_run_says_which_of_the_two_is_older(tmp_path: Path) -> None:
    path = tmp_path / "d"
    device = labelled(path)
    runs = [uuid4() for _ in range(4)]
    of_run(device, path, runs[1], 4)
    for expected in ((runs[1],), (runs[0], runs[1])):
        assert trouble_at(replace(device, generation=4, runs=expected), path, CATALOG) is None
    older = trouble_at(replace(device, generation=5, runs=(runs[2],)), path, CATALOG) or ""
    assert "older copy of the device" in older
    for generation in (3, 4):  # a copy of the state directory that was used as often is told by its runs
        other = replace(device, generation=generation, runs=(runs[3],))
        words = trouble_at(other, path, CATALOG) or ""
        assert "another copy of this state directory" in words
        assert "`polyvol device retry d --accept`" in words
        found = inspect(path)
        assert found is not None
        assert trouble_with(other, found, CATALOG, accept=True) is None
        words = trouble_with(other, found, CATALOG, elsewhere=True) or ""
        assert f"`polyvol device retry d --path {path} --accept`" in words


def test_a_label_of_version_1_is_expected_only_until_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d"
    device = labelled(path)
    path.write_bytes(version_1(Label(device.uuid, CATALOG, device.size, 7)).ljust(4 * MIB, b"\0"))
    assert trouble_at(device, path, CATALOG) is None
    used = replace(device, generation=1, runs=(uuid4(),))
    assert "older copy" in (trouble_at(used, path, CATALOG) or "")


def test_an_adopted_file_is_told_from_a_copy_and_not_from_its_other_names(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x" * MIB)
    found = inspect(path)
    assert found is not None
    if found.lasting is None:
        pytest.skip("this file system does not say when a file was born")
    device = replace(record(MIB, adopted=True), identity=found.lasting)
    (tmp_path / "link").hardlink_to(path)
    path.rename(tmp_path / "renamed")
    for same in ("link", "renamed"):
        assert trouble_at(device, tmp_path / same, CATALOG) is None
    (tmp_path / "copy").write_bytes((tmp_path / "link").read_bytes())
    assert "a copy of it" in (trouble_at(device, tmp_path / "copy", CATALOG) or "")
