"""test_recorder: the recording is complete, and the images made of it are possible contents of a disk.

How it works      A complete log, replayed, gives the tree that the daemon left, byte for byte: so no changing
                  call is missed. The rules of `Disk` are tried on logs made by hand.
"""

import random
from pathlib import Path

import pytest

from tests.crash.disk import POLICIES, Content, Disk, Tree
from tests.crash.recorder import Kind, Record, read_log
from tests.crash.workload import record

OLD, NEW, NEWER = (bytes([one]) * 512 for one in b"onr")
SEEDS = range(40)


class Log:
    """Records made by hand, on a root that has the number 1."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.add(Kind.KNOWN, 1, flag=1, paths=("",))

    def add(
        self,
        kind: Kind,
        file: int,
        *,
        flag: int = 0,
        offset: int = 0,
        length: int = 0,
        token: int = 0,
        data: bytes = b"",
        paths: tuple[str, ...] = (),
    ) -> None:
        payload = b"".join(path.encode() + b"\0" for path in paths) or data
        self.disk.apply(Record(0, kind, flag, file, offset, length, token, payload))

    def create(self, file: int, path: str) -> None:
        self.add(Kind.CREATE, file, paths=(path,))

    def write(self, file: int, data: bytes, offset: int = 0) -> None:
        self.add(Kind.WRITE, file, offset=offset, data=data)

    def sync(self, file: int, *, failed: bool = False) -> None:
        self.add(Kind.SYNC_BEGIN, file, token=1)
        self.add(Kind.SYNC_END, file, token=1, flag=int(failed))

    def images(self) -> list[Tree]:
        """One by each policy and seed."""
        return [self.disk.image(name, random.Random(seed)) for name in POLICIES for seed in SEEDS]

    def found(self, path: str) -> set[bytes]:
        """What the file holds in any image; empty where it is not there."""
        return {whole(tree.get(path)) for tree in self.images()}


def whole(content: Content | None) -> bytes:
    if content is None:
        return b""
    data = bytes(content.data[: content.size])
    return data + bytes(content.size - len(data))


@pytest.fixture
def log() -> Log:
    """One durable file "f" of one sector."""
    made = Log()
    made.create(2, "f")
    made.write(2, OLD)
    made.sync(2)
    made.sync(1)
    return made


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_a_replayed_log_gives_the_tree_that_was_left(tmp_path: Path) -> None:
    recording = record(tmp_path / "recording", seed=1, seconds=1.5, stop=True)
    disk, kinds = Disk(), set()
    for one in read_log(recording.log):
        disk.apply(one)
        kinds.add(Kind(one.kind))
    assert kinds == set(Kind) - {Kind.RMDIR}
    left = recording.directory / "left"
    paths = {str(path.relative_to(left)): path for path in left.rglob("*")}
    tree = disk.tree()
    assert set(paths) == set(tree)
    differing = [
        name for name, path in paths.items() if path.is_file() and whole(tree[name]) != path.read_bytes()
    ]
    assert differing == []


def test_what_was_synced_is_in_every_image(log: Log) -> None:
    assert log.found("f") == {OLD}


def test_what_was_not_synced_is_any_version(log: Log) -> None:
    log.write(2, NEW)
    log.write(2, NEWER)
    assert log.found("f") == {OLD, NEW, NEWER}


def test_sectors_are_kept_or_lost_each_for_itself(log: Log) -> None:
    log.write(2, NEW * 2)
    lost = bytes(512)
    assert log.found("f") >= {OLD, NEW, NEW + NEW, OLD + NEW, NEW + lost, OLD + lost}


def test_a_sync_does_not_cover_what_was_written_while_it_ran(log: Log) -> None:
    log.add(Kind.SYNC_BEGIN, 2, token=7)
    log.write(2, NEW)
    log.add(Kind.SYNC_END, 2, token=7)
    assert log.found("f") == {OLD, NEW}


def test_a_sync_that_has_not_ended_promises_nothing(log: Log) -> None:
    log.write(2, NEW)
    log.add(Kind.SYNC_BEGIN, 2, token=7)
    assert log.found("f") == {OLD, NEW}


def test_what_a_failed_sync_was_for_may_be_lost_for_good(log: Log) -> None:
    log.write(2, NEW)
    log.sync(2, failed=True)
    log.sync(2)
    assert log.found("f") == {OLD, NEW}
    log.write(2, NEW)
    log.sync(2)
    assert log.found("f") == {NEW}


def test_names_are_lost_in_their_order_until_the_directory_is_synced(log: Log) -> None:
    log.create(3, "g")
    log.sync(3)
    log.add(Kind.RENAME, 0, paths=("g", "f"))
    assert {frozenset(tree) for tree in log.images()} == {frozenset("f"), frozenset("fg")}
    assert log.found("f") == {OLD, b""}
    log.sync(1)
    assert {frozenset(tree) for tree in log.images()} == {frozenset("f")}
    assert log.found("f") == {b""}


def test_a_directory_that_was_not_synced_takes_along_what_is_in_it(log: Log) -> None:
    log.add(Kind.MKDIR, 3, paths=("d",))
    log.create(4, "d/f")
    log.sync(4)
    log.sync(3)
    assert {frozenset(tree) for tree in log.images()} == {frozenset("f"), frozenset(("f", "d", "d/f"))}


def test_a_range_made_zero_reads_old_or_zero(log: Log) -> None:
    log.add(Kind.ZERO, 2, flag=1, length=4096)
    assert log.found("f") == {OLD, bytes(512)}
    log.sync(2)
    assert log.found("f") == {bytes(512)}


def test_a_size_that_was_not_synced_is_old_or_new(log: Log) -> None:
    log.add(Kind.TRUNCATE, 2, length=100)
    assert log.found("f") >= {OLD, OLD[:100]}
    log.sync(2)
    assert log.found("f") == {OLD[:100]}


def test_a_killed_process_may_have_removed_and_made_what_it_did_not_say(log: Log) -> None:
    next_process = 1 << 24
    log.add(Kind.KNOWN, next_process + 1, flag=1, paths=("",))
    log.add(Kind.KNOWN, next_process + 2, paths=("g",))
    log.write(next_process + 2, NEW)
    assert {frozenset(tree) for tree in log.images()} == {frozenset("f"), frozenset("fg")}
    log.add(Kind.SYNC_BEGIN, next_process + 2, token=9)
    assert {frozenset(tree) for tree in log.images()} >= {frozenset("f"), frozenset("g")}
    log.add(Kind.SYNC_END, next_process + 2, token=9)
    log.sync(next_process + 1)
    assert {frozenset(tree) for tree in log.images()} == {frozenset("g")}
    assert log.found("g") == {NEW}
