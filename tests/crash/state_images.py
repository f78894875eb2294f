"""state_images: a state directory as an image in memory, and the state whose images damage.py damages.

How it works      `build` runs a service three times on a directory and captures what it leaves: volumes v (on
                  disks) and w (on files that polyvold made) of a group, with snapshots, v rolled back, c a
                  clone of it, u without snapshots, so that its blocks are overwritten in place. `capture` and
                  `lay_out` keep holes as holes.
"""

import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from polyvol.daemon.service import Service
from polyvol.daemon.types.devices import DeviceAdd
from polyvol.daemon.types.groups import GroupCreate, GroupSnapshotCreate, RollbackStart
from polyvol.daemon.types.volumes import CloneCreate, VolumeCreate
from polyvol.mapping.device import ASIDE

BLOCK, MIB = 4096, 1 << 20
SIZE = MIB + 3 * BLOCK


class File(NamedTuple):
    """A file's size, and its bytes that are not holes, by offset."""

    size: int
    pieces: tuple[tuple[int, bytes], ...]


Image = dict[str, File | None]
"""Files by path from the root on; None: a directory."""


@dataclass
class Story:
    """The images by name, of a root directory whose path they have in them, and what every export held when
    the last two were made."""

    root: Path
    images: dict[str, Image] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict)


def capture(root: Path) -> Image:
    """The files below a directory; sockets are left out."""
    image: Image = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            image[str(path.relative_to(root))] = None
        elif stat.S_ISREG(mode):
            image[str(path.relative_to(root))] = _file(path)
    return image


def _file(path: Path) -> File:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, at, pieces = os.fstat(fd).st_size, 0, []
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break  # a hole to the end
            end = os.lseek(fd, at, os.SEEK_HOLE)
            pieces.append((at, os.pread(fd, end - at, at)))
            at = end
        return File(size, tuple(pieces))
    finally:
        os.close(fd)


def lay_out(image: Image, root: Path) -> None:
    """Make the files of an image below a directory, and nothing else there."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, file in sorted(image.items()):
        if file is None:
            (root / name).mkdir()
            continue
        fd = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, file.size)
            for at, data in file.pieces:
                os.pwrite(fd, data, at)
        finally:
            os.close(fd)


def lay_out_again(image: Image, labels: dict[str, bytes], root: Path) -> None:
    """The same, where files that are there already keep their inodes, so that adopted ones are not copies of
    what was adopted; with the labels that adopted files had aside (`asides`)."""
    for path in sorted(root.rglob("*"), reverse=True):
        name = str(path.relative_to(root))
        if name not in image and path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif name not in image:
            path.unlink()
    for name, file in sorted(image.items()):
        if file is None:
            (root / name).mkdir(exist_ok=True)
            continue
        fd = os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, 0)
            os.truncate(fd, file.size)
            for at, data in file.pieces:
                os.pwrite(fd, data, at)
            if name in labels:
                os.setxattr(fd, ASIDE, labels[name])
            elif ASIDE in os.listxattr(fd):
                os.removexattr(fd, ASIDE)
        finally:
            os.close(fd)


def asides(root: Path) -> dict[str, bytes]:
    """The labels in extended attributes of files below a directory."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): os.getxattr(path, ASIDE) for path in files if ASIDE in os.listxattr(path)
    }


# The state


@contextmanager
def serving(root: Path) -> Iterator[Service]:
    """A service on the state directory below a root."""
    service = Service(root / "state", processors=2, serve_nbd=False)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def build(root: Path) -> Story:
    """Make the state and its images."""
    story = Story(root)
    root.mkdir()
    (root / "disks").mkdir()
    with serving(root) as service:
        for name, size in (("a", 4 * MIB), ("b", 4 * MIB), ("log", 200 * MIB)):
            service.add_device(DeviceAdd(path=str(root / "disks" / f"{name}.img"), name=name, size=size))
        service.create_volume(
            VolumeCreate(
                name="v",
                size=SIZE,
                partition_size=MIB,
                processors=2,
                devices=("a", "b"),
                log_devices=("log",),
            )
        )
        service.create_volume(VolumeCreate(name="w", size=SIZE, partition_size=MIB, processors=2))
        service.create_volume(
            VolumeCreate(name="u", size=SIZE, partition_size=MIB, devices=("a", "b"), log_devices=("log",))
        )  # overwritten in place
        service.groups.create(GroupCreate(name="g", volumes=("v", "w")))
        _write(service, "v", 1)
        _write(service, "w", 1)
        _write(service, "u", 1)
        _cut(service, "s1")
        _write(service, "v", 2)
    story.images["first"] = capture(root)
    with serving(root) as service:
        _write(service, "w", 3)
        _write(service, "u", 1, salt=1)
        _cut(service, "s2")
        _write(service, "v", 4)
        story.images["earlier"] = capture(root)
        service.rollbacks.roll_back("v", "s1", RollbackStart(safety=True, safety_name="left"))
        service.clone_volume("v", "s1", CloneCreate(name="c"))
        for turn, volume in enumerate(("v", "w", "c"), 5):
            _write(service, volume, turn)
        _cut(service, "s3")
        _write(service, "u", 1, salt=2)
        for turn, volume in enumerate(("v", "w", "c"), 8):
            _write(service, volume, turn, flush=volume != "w")
        story.images["killed"] = capture(root)
        story.held = {export["name"]: _read(service, export["name"]) for export in service.exports()}
    story.images["stopped"] = capture(root)
    return story


def _cut(service: Service, name: str) -> None:
    service.groups.take("g", GroupSnapshotCreate(name=name))


def _write(service: Service, volume: str, turn: int, *, salt: int = 0, flush: bool = True) -> None:
    """Write blocks that the turn draws; the salt is in what they hold."""
    draw = random.Random(turn)
    handle = service.engine.open(volume)
    try:
        for block in draw.sample(range(SIZE // BLOCK), 12):
            handle.pwrite(bytes([turn, salt]) * 4 + draw.randbytes(BLOCK - 8), block * BLOCK)
        if flush:
            handle.flush()
    finally:
        handle.close()


def _read(service: Service, export: str) -> bytes:
    handle = service.engine.open(export)
    try:
        return handle.pread(SIZE, 0)
    finally:
        handle.close()


def below(image: Image, path: str) -> Image:
    """A file, or a directory with all in it."""
    return {name: file for name, file in image.items() if name == path or name.startswith(f"{path}/")}


def bytes_of(file: File | None, end: int | None = None) -> bytes:
    """What a file holds, to its end or to this offset."""
    assert file is not None
    size = file.size if end is None else min(end, file.size)
    data = bytearray(size)
    for at, piece in file.pieces:
        if at < size:
            data[at : at + len(piece)] = piece[: size - at]
    return bytes(data)
