"""test_soak: polyvold's verbs and threads, all at one time, lose nothing when it is killed.

How it works      soak.py runs the load and compares; calls.py kills a script of verbs before one of its
                  calls. `scripts/torture --only soak --only calls` tries more.
"""

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.asking import PARTITION, Asking
from tests.crash.calls import Pass, Script, write
from tests.crash.history import SECTOR, Lost, content, contents
from tests.crash.ledger import Held, Image, Ledger, Live
from tests.crash.settling import settle
from tests.crash.soak import Done, soak
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

SIZE = 16 * SECTOR


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory in memory, with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as path:
        yield Path(path)


def some(size: int = SIZE) -> Live:
    live = Live("v", [Image(bytearray(size))])
    live.watch()
    return live


def test_a_few_kills_lose_nothing(memory_dir: Path) -> None:
    done = run(memory_dir, seed=3, count=2)
    assert done.kills + done.stops == 2
    assert done.compared.snapshots > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_beside_all_verbs_lose_nothing(memory_dir: Path) -> None:
    done = run(memory_dir, seed=5, count=10)
    assert done.kills > 5
    assert done.compared.snapshots > 50


@pytest.mark.slow
def test_kills_at_calls_of_a_rollback_and_a_deletion_lose_nothing(memory_dir: Path) -> None:
    script = Script(memory_dir / "tried")
    script.run(Pass.parse("plain:5"), first=6, last=8)
    assert script.tried.kills >= 2, "most of these steps make so many calls"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_at_calls_of_all_verbs_lose_nothing(memory_dir: Path) -> None:
    script = Script(memory_dir / "tried")
    script.run(Pass.parse("checkpoints:4"))
    assert script.tried.kills > 15
    assert script.tried.compared.snapshots > 20


def run(directory: Path, *, seed: int, count: int) -> Done:
    *_, done = soak(directory, seed, count=count, deadline=time.monotonic() + 250)
    return done


# What the ledger tells apart


def test_a_write_in_flight_is_old_or_new_and_an_acknowledged_one_is_new() -> None:
    ledger, live = Ledger(), some()
    ticket = ledger.issue(live, 2, 2, 7)
    both = [content(7, 2) + content(0, 3), content(0, 2) + content(7, 3)]
    for found in both:
        assert live.images[0].difference(bytes(2 * SECTOR) + found + bytes(12 * SECTOR)) is None
    ledger.done(live, ticket, 2, contents(7, 2, 2))
    with pytest.raises(Lost, match=r"^volume v, block 0 \(sector 3 of it\): found zeros, wanted write 7$"):
        ledger.compare("volume v", live, bytes(2 * SECTOR) + both[0] + bytes(12 * SECTOR))


def test_a_snapshot_may_have_what_was_written_while_it_was_taken_and_nothing_else() -> None:
    ledger, live = Ledger(), some()
    ledger.done(live, ledger.issue(live, 0, 1, 1), 0, content(1, 0))
    ledger.begin_taking(live, "s")
    ledger.done(live, ledger.issue(live, 1, 1, 2), 1, content(2, 1))
    ledger.end_taking(live, "s", done=True)
    ledger.done(live, ledger.issue(live, 2, 1, 3), 2, content(3, 2))
    held, rest = live.snapshots["s"], bytes(14 * SECTOR)
    assert held.images[0].difference(content(1, 0) + bytes(SECTOR) + rest) is None
    assert held.images[0].difference(content(1, 0) + content(2, 1) + rest) is None
    late = content(1, 0) + content(2, 1) + content(3, 2) + bytes(13 * SECTOR)
    assert held.images[0].difference(late) == "block 0 (sector 2 of it): found write 3, wanted zeros"


def test_a_rollback_in_flight_has_happened_or_not_but_not_in_part() -> None:
    ledger, live = Ledger(), some()
    ledger.done(live, ledger.issue(live, 0, 2, 1), 0, contents(1, 0, 2))
    ledger.begin_change(live, [Image(bytearray(SIZE))], 9)
    before, after = contents(1, 0, 2) + bytes(14 * SECTOR), bytes(SIZE)
    for found, sides in ((before, {(9, False)}), (after, {(9, True)})):
        copy = Held([image.copy(side=image.side) for image in live.images])
        assert ledger.compare("volume v", copy, found) == sides
    with pytest.raises(Lost, match="none of 1 other"):
        ledger.compare("volume v", live, content(1, 0) + bytes(15 * SECTOR))


def test_a_volume_that_grew_after_a_rollback_keeps_its_blocks(memory_dir: Path) -> None:
    """What the soak has found: a growth left a map of the abandoned line that no snapshot sees; when the
    rollback was forgotten, blocks of the live volume were freed, and used again."""
    with Daemon(memory_dir, "--processors", "1") as daemon:
        asking = Asking(daemon, Ledger())
        assert asking.create(PARTITION + 4096 * 50, name="v")
        assert asking.take("v", name="s0")
        write(asking, "v", range(250, 290))
        assert asking.take("v", name="s1")
        write(asking, "v", range(260, 280))
        assert asking.take("v", name="z2")
        assert asking.take("v", name="s3")
        write(asking, "v", range(290, 300))
        assert asking.delete("v", "s3")
        assert asking.roll_back("v", "s1", safety=False)
        assert asking.grow("v", 20)
        assert asking.delete("v", "s1")
        assert asking.delete_some("v", "z")  # which has rollbacks looked at as well
        wait_until(lambda: not rollbacks(daemon), "the rollback to be forgotten")
        write(asking, "v", range(60))
        settle(asking)


def rollbacks(daemon: Daemon) -> list[int]:
    with closing(sqlite3.connect(f"file:{daemon.state_dir}/catalog.db?mode=ro", uri=True)) as catalog:
        return [at for (at,) in catalog.execute("SELECT at FROM rollback")]
