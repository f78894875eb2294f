"""test_dirty_bitmaps: what changed since a snapshot, asked for over NBD as QEMU's dirty bitmaps are.

How it works      A volume of many partitions is written, snapshotted, written again in known places; nbdinfo,
                  libnbd, qemu-img and the way in which virtnbdbackup reads (extents of a dirty bitmap, then
                  only these) have to tell these places, and a copy that is updated by them has to
                  be the same.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import check

MIB = 1 << 20
SIZE = 64 * MIB
DIRTY = "qemu:dirty-bitmap:"
Extents = list[tuple[int, int]]


@pytest.fixture
def volume(daemon: Daemon) -> str:
    """A volume of 64 partitions with something in it and a snapshot `a` of that."""
    name = daemon.make_volume("v", size="64M", partition_size="1M")
    draw = random.Random(5)
    with nbd.connect(daemon.uri(name)) as handle:
        for _ in range(20):
            handle.pwrite(draw.randbytes(300_000), draw.randrange(SIZE - 300_000))
    daemon.ok("snapshot", "create", name, "--name", "a")
    return name


def change(daemon: Daemon, seed: int) -> Extents:
    """Write, zero and trim in places of the volume that are not next to each other; the blocks touched."""
    draw = random.Random(seed)
    extents: Extents = []
    with nbd.connect(daemon.uri("v")) as handle:
        for start in range(0, SIZE, 4 * MIB):
            offset = start + draw.randrange(0, 2 * MIB)
            length = draw.randrange(1, MIB)
            kind = draw.randrange(3)
            if kind == 0:
                handle.pwrite(draw.randbytes(length), offset)
            else:
                # Written first, so that zeroing is a change.
                offset, length = offset // 4096 * 4096, max(length // 4096 * 4096, 4096)
                handle.pwrite(b"x" * length, offset)
                (handle.zero if kind == 1 else handle.trim)(length, offset)
            first, last = offset // 4096, (offset + length - 1) // 4096
            extents.append((first * 4096, (last + 1 - first) * 4096))
    return extents


def dirty(handle: Any, context: str, size: int) -> Extents:
    """The dirty extents of a context, asked for as backup tools do: on from where the answer ended."""
    told: Extents = []
    at = 0
    while at < size:
        found: list[int] = []

        def extent(name: str, _: int, entries: list[int], __: object, found: list[int] = found) -> int:
            if name == context:
                found.extend(entries)
            return 0

        handle.block_status(min(size - at, 32 * MIB), at, extent)
        assert found
        for length, flags in zip(found[::2], found[1::2], strict=True):
            if flags & 1:
                if told and sum(told[-1]) == at:
                    told[-1] = (told[-1][0], told[-1][1] + length)
                else:
                    told.append((at, length))
            at += length
    assert at == size
    return told


def diff(daemon: Daemon, *names: str) -> Extents:
    """What `polyvol snapshot diff` tells."""
    shown = daemon.json("snapshot", "diff", *names)
    return [(extent["offset"], extent["length"]) for extent in shown["extents"]]


def qemu_map(daemon: Daemon, export: str, context: str) -> Extents:
    """`qemu-img map` with a dirty bitmap: what is dirty is shown as not allocated."""
    image = f"driver=nbd,export={export},server.type=unix,server.path={daemon.nbd_socket}"
    options = f"{image},x-dirty-bitmap={context}"
    told = json.loads(check("qemu-img", "map", "--output=json", "--image-opts", options))
    return [(part["start"], part["length"]) for part in told if not part["data"]]


def nbdinfo_map(daemon: Daemon, export: str, context: str) -> Extents:
    """`nbdinfo --map`: what is dirty."""
    told = json.loads(check("nbdinfo", "--json", f"--map={context}", daemon.uri(export)))
    return [(part["offset"], part["length"]) for part in told if part["type"] & 1]


def test_every_client_tells_the_same_changes(daemon: Daemon, volume: str) -> None:
    changed = change(daemon, 1)
    daemon.ok("snapshot", "create", volume, "--name", "b")
    change(daemon, 2)
    for export in ("v@b", "v"):
        expected = diff(daemon, "v@a", export)
        assert nbdinfo_map(daemon, export, f"{DIRTY}a") == expected
        assert qemu_map(daemon, export, f"{DIRTY}a") == expected
        with nbd.connect(daemon.uri(export), contexts=(nbd.BASE_ALLOCATION, f"{DIRTY}a")) as handle:
            assert dirty(handle, f"{DIRTY}a", SIZE) == expected
            assert sum(length for length, _ in nbd.allocation(handle, SIZE, 0)) == SIZE
    assert diff(daemon, "v@a", "v@b") == changed


def test_each_export_offers_the_older_snapshots_of_its_volume(daemon: Daemon, volume: str) -> None:
    daemon.ok("snapshot", "create", volume, "--name", "b")
    daemon.make_volume("w", size="64M")

    def offered(export: str) -> set[str]:
        return set(nbd.info(daemon.uri(export))["contexts"])

    assert offered("v") == {nbd.BASE_ALLOCATION, f"{DIRTY}a", f"{DIRTY}b"}
    assert offered("v@b") == {nbd.BASE_ALLOCATION, f"{DIRTY}a"}
    assert offered("v@a") == offered("w") == {nbd.BASE_ALLOCATION}
    with nbd.connect(daemon.uri("v@a"), contexts=(f"{DIRTY}b", f"{DIRTY}a", f"{DIRTY}x")) as handle:
        assert not any(handle.can_meta_context(f"{DIRTY}{name}") for name in "abx")


def test_several_contexts_are_answered_together(daemon: Daemon, volume: str) -> None:
    change(daemon, 1)
    daemon.ok("snapshot", "create", volume, "--name", "b")
    change(daemon, 2)
    names = (f"{DIRTY}a", f"{DIRTY}b")
    with nbd.connect(daemon.uri("v"), contexts=names) as handle:
        for name, snapshot in zip(names, ("v@a", "v@b"), strict=True):
            assert dirty(handle, name, SIZE) == diff(daemon, snapshot)
        told: dict[str, list[int]] = {}

        def extent(name: str, _: int, entries: list[int], __: object) -> int:
            told[name] = entries
            return 0

        handle.block_status(SIZE, 0, extent)
        assert set(told) == set(names)
        handle.block_status(SIZE, 0, extent, nbd.REQ_ONE)
        assert all(len(entries) == 2 for entries in told.values())


def test_a_snapshot_that_is_compared_with_is_not_deleted(daemon: Daemon, volume: str) -> None:
    with nbd.connect(daemon.uri("v"), contexts=(f"{DIRTY}a",)) as handle:
        assert handle.can_meta_context(f"{DIRTY}a")
        assert "in use by 1 client" in daemon.refused("snapshot", "delete", "v@a")
    deadline_delete(daemon, "v@a")
    with nbd.connect(daemon.uri("v"), contexts=(f"{DIRTY}a",)) as handle:
        assert not handle.can_meta_context(f"{DIRTY}a")


def deadline_delete(daemon: Daemon, name: str) -> None:
    """Delete a snapshot whose client may still be leaving."""
    for _ in range(200):
        if daemon.cli("snapshot", "delete", name).rc == 0:
            return
    raise AssertionError(f"{name} stays in use")


@pytest.fixture
def copy(daemon: Daemon, volume: str, tmp_path: Path) -> Iterator[Path]:
    """A copy of snapshot `a`, by nbdcopy."""
    path = tmp_path / "copy"
    nbd.copy(daemon.uri(f"{volume}@a"), path)
    yield path
    path.unlink()


@pytest.mark.slow
def test_a_copy_is_brought_up_to_date_as_virtnbdbackup_does(daemon: Daemon, copy: Path) -> None:
    older = "a"
    for number in range(4):
        change(daemon, number)
        if number == 2:
            daemon.kill()
            daemon.start()
        newer = f"s{number}"
        daemon.ok("snapshot", "create", "v", "--name", newer)
        context = f"{DIRTY}{older}"
        with nbd.connect(daemon.uri(f"v@{newer}"), contexts=(context,)) as handle, copy.open("r+b") as file:
            extents = dirty(handle, context, SIZE)
            assert 0 < sum(length for _, length in extents) < SIZE // 2
            for offset, length in extents:
                file.seek(offset)
                file.write(handle.pread(length, offset))
        nbd.qemu_compare(daemon.uri(f"v@{newer}"), copy)
        older = newer
