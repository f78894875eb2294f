"""test_cold: reads that the page cache cannot answer, many at a time, of base places and of slots.

How it works      Devices are files on a disk's file system, whose pages are dropped before each round of
                  reads; where /tmp is memory, nothing can be dropped and the tests are skipped.
"""

import errno
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import direct, nbd
from tests.support.daemon import Daemon

BLOCK = 4096
SIZE = 64 << 20
IN_FLIGHT = 64


@pytest.fixture
def base(daemon: Daemon) -> bytes:
    """A volume v on an adopted file of random bytes, and its snapshot s; the file's bytes."""
    contents = random.Random(1).randbytes(SIZE)
    file = daemon.directory / "base.img"
    file.write_bytes(contents)
    daemon.ok("device", "add", file, "--name", "base", "--adopt")
    daemon.add_devices("log", size="128M")
    daemon.ok("volume", "create", "v", "--base", "base", "--log-device", "log", "--processors", "2")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    return contents


def overwrite(daemon: Daemon, contents: bytes) -> bytearray:
    """Overwrites every fourth run of 16 blocks; returns what v shows from then on."""
    now = bytearray(contents)
    with nbd.connect(daemon.uri("v")) as handle:
        for offset in range(0, SIZE, 64 * BLOCK):
            now[offset : offset + 16 * BLOCK] = random.Random(offset).randbytes(16 * BLOCK)
            handle.pwrite(now[offset : offset + 16 * BLOCK], offset)
        handle.flush()
    return now


def drop_pages(daemon: Daemon) -> None:
    """Has the page cache keep nothing of the devices."""
    for name in ("log.img", "base.img"):
        direct.drop_pages(daemon.directory / name)
    if direct.cached_blocks(daemon.directory / "base.img", SIZE // 2, BLOCK):
        pytest.skip("the page cache keeps files of /tmp")


def ranges(seed: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of reads: blocks, parts of blocks, runs that cross base places and slots."""
    choice = random.Random(seed)
    for _ in range(2000):
        length = choice.choice((BLOCK, BLOCK, BLOCK, 512, 3 * BLOCK + 100, 100_000))
        offset = choice.randrange(SIZE - length)
        yield (offset - offset % BLOCK if length == BLOCK else offset), length


def read_many(handle: Any, wanted: Iterator[tuple[int, int]], contents: bytes | bytearray) -> None:
    """Reads all ranges, IN_FLIGHT at a time, and compares."""
    under_way: dict[int, tuple[int, Any]] = {}
    for offset, length in wanted:
        while len(under_way) == IN_FLIGHT:
            compare_ended(handle, under_way, contents)
        buffer = nbd.buffer(length)
        under_way[handle.aio_pread(buffer, offset)] = offset, buffer
    while under_way:
        compare_ended(handle, under_way, contents)


def compare_ended(handle: Any, under_way: dict[int, tuple[int, Any]], contents: bytes | bytearray) -> None:
    """Waits for something to end, and compares all that has."""
    handle.poll(10_000)
    while under_way and (cookie := handle.aio_peek_command_completed()) > 0:
        handle.aio_command_completed(cookie)
        offset, buffer = under_way.pop(cookie)
        found = buffer.to_bytearray()
        assert found == contents[offset : offset + len(found)], (offset, len(found))


@pytest.mark.slow
def test_many_cold_reads_at_a_time_return_what_was_written(daemon: Daemon, base: bytes) -> None:
    now = overwrite(daemon, base)
    for export, contents in (("v", now), ("v@s", base)):
        drop_pages(daemon)
        with nbd.connect(daemon.uri(export)) as handle:
            read_many(handle, ranges(7), contents)


@pytest.mark.slow
def test_a_cold_read_of_a_damaged_slot_fails_alone(daemon: Daemon, base: bytes) -> None:
    now = overwrite(daemon, base)
    drop_pages(daemon)
    log = daemon.directory / "log.img"
    damaged = 128 * BLOCK
    at = log.read_bytes().index(now[damaged : damaged + BLOCK])
    with log.open("r+b") as file:
        file.seek(at + 99)
        file.write(bytes([now[damaged + 99] ^ 1]))
    drop_pages(daemon)
    with nbd.connect(daemon.uri("v")) as handle:
        # The damaged one comes first, before the kernel has read it ahead.
        offsets = [damaged, *range(0, damaged, BLOCK), *range(damaged + BLOCK, 2 * damaged, BLOCK)]
        reads = [(offset, nbd.buffer(BLOCK)) for offset in offsets]
        cookies = [(handle.aio_pread(buffer, offset), offset, buffer) for offset, buffer in reads]
        for cookie, offset, buffer in cookies:
            if offset == damaged:
                assert ended(handle, cookie) == errno.EIO
            else:
                assert ended(handle, cookie) == 0
                assert buffer.to_bytearray() == now[offset : offset + BLOCK], offset
    shown = daemon.volume("v")
    assert [bad["block"] * BLOCK for bad in shown["bad_blocks"]] == [damaged]


def test_a_cold_read_behind_a_files_end_fails_alone(daemon: Daemon, base: bytes) -> None:
    drop_pages(daemon)
    os.truncate(daemon.directory / "base.img", SIZE - 8 * BLOCK)
    with nbd.connect(daemon.uri("v")) as handle:
        offsets = range(SIZE - 64 * BLOCK, SIZE, BLOCK)
        reads = [(offset, nbd.buffer(BLOCK)) for offset in offsets]
        cookies = [(handle.aio_pread(buffer, offset), offset, buffer) for offset, buffer in reads]
        for cookie, offset, buffer in cookies:
            there = offset < SIZE - 8 * BLOCK
            assert ended(handle, cookie) == (0 if there else errno.EIO), offset
            assert not there or buffer.to_bytearray() == base[offset : offset + BLOCK], offset
    assert daemon.end() == 1, "what was written to it cannot be made durable"


def ended(handle: Any, cookie: int) -> int:
    """Waits for a command; its errno, or 0."""
    try:
        while not handle.aio_command_completed(cookie):
            handle.poll(10_000)
    except nbd.NbdError as error:
        return int(error.errnum)
    return 0
