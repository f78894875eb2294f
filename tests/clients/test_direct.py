"""test_direct: devices past the page cache hold what was written, in whole blocks and in parts of them.

How it works      The base and the change log are both added with --direct. Random reads, writes and
                  zeroings of aligned and unaligned ranges are done on bytes in memory too, before and after a
                  snapshot, and everything is compared, also after a stop and after a kill. That the cache was
                  passed by is seen in it: it has nothing of a block that was read or written so. The tests
                  are skipped where the file system of /tmp has no O_DIRECT.
"""

import json
import random
from collections.abc import Iterator

import pytest

from tests.clients.test_cold import ended, read_many
from tests.support import direct, nbd
from tests.support.daemon import Daemon

BLOCK = 4096
SIZE = 16 << 20
LENGTHS = (BLOCK, BLOCK, 2 * BLOCK, 16 * BLOCK, 1, 512, BLOCK - 1, BLOCK + 1, 3 * BLOCK + 100, 100_000)
LARGE = 2 << 20
STEPS = 400


@pytest.fixture
def reference(daemon: Daemon) -> nbd.Reference:
    """A volume v on an adopted file of random bytes, with a change log, both direct; what v holds."""
    direct.needed(daemon.directory)
    reference = nbd.Reference(SIZE)
    reference.write(random.Random(1).randbytes(SIZE), 0)
    base, log = daemon.directory / "base.img", daemon.directory / "log.img"
    base.write_bytes(reference.data)
    daemon.ok("device", "add", base, "--name", "base", "--adopt", "--direct")
    daemon.ok("device", "add", log, "--name", "log", "--size", "128M", "--direct")
    options = ("--partition-size", "4M", "--processors", "2")
    daemon.ok("volume", "create", "v", "--base", "base", "--log-device", "log", *options)
    return reference


def some_range(choice: random.Random) -> tuple[int, int]:
    """An offset and a length: whole blocks at their places, the same elsewhere, parts, runs over borders."""
    length = LARGE if choice.random() < 0.01 else choice.choice(LENGTHS)
    offset = choice.randrange(SIZE - length + 1)
    return (offset - offset % BLOCK if choice.random() < 0.5 else offset), length


def ranges(seed: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of reads."""
    choice = random.Random(seed)
    return (some_range(choice) for _ in range(2 * STEPS))


def change(daemon: Daemon, reference: nbd.Reference, seed: int) -> None:
    """Read, write and zero ranges of v, one after the other, and the same in memory; flushed."""
    choice = random.Random(seed)
    with nbd.connect(daemon.uri("v")) as handle:
        for step in range(STEPS):
            offset, length = some_range(choice)
            match choice.choice(("read", "read", "write", "write", "write", "zero")):
                case "read":
                    found = handle.pread(length, offset)
                    assert found == reference.data[offset : offset + length], (seed, step, offset, length)
                case "write":
                    data = choice.randbytes(length)
                    handle.pwrite(data, offset)
                    reference.write(data, offset)
                case _:
                    handle.zero(length, offset)
                    reference.zero(length, offset)
        handle.flush()


def compare(daemon: Daemon, export: str, contents: bytes | bytearray) -> None:
    """The export holds this: read whole, and in ranges, many at a time."""
    assert nbd.read_all(daemon.uri(export)) == contents, export
    with nbd.connect(daemon.uri(export)) as handle:
        read_many(handle, ranges(7), contents)


@pytest.mark.slow
def test_what_was_written_is_read_also_from_a_snapshot_and_after_a_restart(
    daemon: Daemon, reference: nbd.Reference
) -> None:
    change(daemon, reference, 2)
    compare(daemon, "v", reference.data)
    daemon.ok("snapshot", "create", "v", "--name", "s")
    frozen = reference.frozen()
    change(daemon, reference, 3)  # redirected
    change(daemon, reference, 4)  # over what was redirected
    compare(daemon, "v", reference.data)
    compare(daemon, "v@s", frozen)
    daemon.restart()
    assert [daemon.json("device", "show", name)["direct"] for name in ("base", "log")] == [True, True]
    compare(daemon, "v", reference.data)
    compare(daemon, "v@s", frozen)
    change(daemon, reference, 5)
    daemon.kill()
    daemon.start()
    compare(daemon, "v", reference.data)
    compare(daemon, "v@s", frozen)
    daemon.ok("snapshot", "delete", "v@s")
    change(daemon, reference, 6)
    compare(daemon, "v", reference.data)
    daemon.stop()
    assert json.loads(daemon.ok("check", "--data", "--json"))["problems"] == []


@pytest.mark.slow
def test_writes_in_flight_do_not_disturb_each_other(daemon: Daemon, reference: nbd.Reference) -> None:
    daemon.ok("snapshot", "create", "v", "--name", "s")
    frozen = reference.frozen()
    choice = random.Random(8)
    lane = SIZE // 32
    with nbd.connect(daemon.uri("v")) as handle:
        for _ in range(10):
            cookies = []
            for start in range(0, SIZE, lane):
                length = choice.choice(LENGTHS)
                # The lanes' borders are in the middle of blocks, so that two writes may share one.
                offset = min(start + BLOCK // 2 + choice.randrange(lane - length + 1), SIZE - length)
                data = choice.randbytes(length)
                cookies.append(handle.aio_pwrite(nbd.filled(data), offset))
                reference.write(data, offset)
            assert not any([ended(handle, cookie) for cookie in cookies])
        handle.flush()
    compare(daemon, "v", reference.data)
    compare(daemon, "v@s", frozen)


@pytest.mark.slow
def test_whole_blocks_are_not_kept_in_the_page_cache(daemon: Daemon, reference: nbd.Reference) -> None:
    base, log = daemon.directory / "base.img", daemon.directory / "log.img"
    middle = SIZE // 2
    direct.drop_pages(base)
    if direct.cached_blocks(base):
        pytest.skip("the page cache keeps files of /tmp")
    with nbd.connect(daemon.uri("v")) as handle:
        assert handle.pread(BLOCK, middle) == reference.data[middle : middle + BLOCK]
        assert handle.pread(LARGE, middle) == reference.data[middle : middle + LARGE]
        assert direct.cached_blocks(base) == 0
        handle.pwrite(b"a" * BLOCK, middle)
        handle.flush()
        assert direct.cached_blocks(base) == 0
        daemon.ok("snapshot", "create", "v", "--name", "s")
        handle.pwrite(b"b" * BLOCK, middle)
        handle.flush()
        slot = log.read_bytes().index(b"b" * BLOCK)
        direct.drop_pages(log)
        assert handle.pread(BLOCK, middle) == b"b" * BLOCK
        assert direct.cached_blocks(log, slot, BLOCK) == 0
        handle.pwrite(b"c", middle + 1)
        assert handle.pread(BLOCK, middle) == b"bc" + b"b" * (BLOCK - 2)
    compare(daemon, "v@s", reference.data[:middle] + b"a" * BLOCK + reference.data[middle + BLOCK :])
