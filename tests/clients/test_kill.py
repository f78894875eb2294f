"""test_kill: SIGKILL under load, during cuts, loses nothing that was acknowledged or reported.

How it works      Clients write numbered blocks over two volumes (support/round_robin.py) while snapshots of
                  both are taken and deleted; the daemon is killed at some moment and started again. Then each
                  client's numbers are a prefix that reaches at least what was acknowledged and at most what
                  was issued; every snapshot that was reported is there and as it was; one that was under way
                  is whole or not there at all; the clients go on from where they were. The load of
                  tests/crash zeroes, trims and flushes too, with small segments and checkpoints, and is
                  killed while it starts as well (tests/crash/kills.py).
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.client import ApiError
from polyvol.mapping.errors import PolyvolError
from tests.clients.system import delete_when_unused
from tests.crash.kills import kill_again_and_again
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.round_robin import Layout, Progress, prefixes, writing

LAYOUT = Layout(clients=3, volumes=2, partitions=8, partition_bytes=1 << 20)
VOLUMES = ("v1", "v2")
KEPT = 3


class Load:
    """A thread that takes and deletes snapshots until the daemon is gone, and what was reported of them."""

    def __init__(self, daemon: Daemon, turn: int) -> None:
        self.reported: dict[str, list[int]] = {}
        self.deleting: set[str] = set()
        self.killing = False
        self._daemon = daemon
        self._turn = turn
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, which ends when the daemon does."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._take_snapshots()
        except (PolyvolError, ApiError, OSError, nbd.NbdError) as error:
            if not self.killing:
                self._failure = error
        except BaseException as error:
            self._failure = error

    def _take_snapshots(self) -> None:
        for number in range(10_000):
            name = f"t{self._turn}-{number}"
            self._daemon.api.post("snapshots", body={"volumes": VOLUMES, "name": name})
            self.reported[name] = []
            self.reported[name] = last_numbers(self._daemon, f"@{name}")
            if len(self.reported) > KEPT:
                old = next(iter(self.reported))
                self.deleting.add(old)
                del self.reported[old]
                for volume in VOLUMES:
                    delete_when_unused(self._daemon, volume, old)


def last_numbers(daemon: Daemon, suffix: str) -> list[int]:
    """Each client's last number in both volumes, or in both snapshots of one cut."""
    with ExitStack() as stack:
        handles = [stack.enter_context(nbd.connect(daemon.uri(volume + suffix))) for volume in VOLUMES]

        def read(volume: int, length: int, offset: int) -> bytes:
            return bytes(handles[volume].pread(length, offset))

        return prefixes(LAYOUT, read, suffix or "the live volumes")


def check_snapshots(daemon: Daemon, load: Load) -> None:
    """Those that were reported are there, unchanged; those under way are of both volumes or of none."""
    listed = {(each["volume"], each["name"]) for each in daemon.snapshots()}
    for name, last in load.reported.items():
        assert {(volume, name) for volume in VOLUMES} <= listed, f"snapshot {name} is gone"
        assert last in ([], last_numbers(daemon, f"@{name}")), f"snapshot {name} has changed"
    for name in {name for _, name in listed} - set(load.reported) - load.deleting:
        assert {(volume, name) for volume in VOLUMES} <= listed, f"snapshot {name} is of one volume only"
        last_numbers(daemon, f"@{name}")


def kill_under_load(daemon: Daemon, turn: int, first: list[int], delay_s: float) -> list[int]:
    """One kill and what it leaves; each client's last number afterwards."""
    with writing(
        LAYOUT, [daemon.uri(name) for name in VOLUMES], daemon.directory, first=first, may_be_cut_off=True
    ) as progress:
        load = Load(daemon, turn)
        time.sleep(delay_s)
        load.killing = True
        daemon.kill()
        load.join()
    last = told(daemon, progress)
    check_snapshots(daemon, load)
    for volume, name in {(each["volume"], each["name"]) for each in daemon.snapshots()}:
        delete_when_unused(daemon, volume, name)
    return last


def told(daemon: Daemon, progress: Progress) -> list[int]:
    """Start again and compare with what the clients know."""
    daemon.start()
    last = last_numbers(daemon, "")
    low, high = progress.acknowledged(), progress.issued()
    within = all(one <= now <= other for one, now, other in zip(low, last, high, strict=True))
    assert within, f"acknowledged {low}, found {last}, issued {high}"
    return last


def kills(daemon: Daemon, count: int, seed: int) -> None:
    for name in VOLUMES:
        daemon.make_volume(name, size="8M", processors=2, partition_size="1M")
    draw = random.Random(seed)
    last = [0] * LAYOUT.clients
    for turn in range(count):
        last = kill_under_load(daemon, turn, last, draw.uniform(0.05, 0.6))


@pytest.mark.slow
def test_a_kill_under_load_loses_nothing(daemon: Daemon) -> None:
    kills(daemon, 3, seed=6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_kills_under_load_lose_nothing(make_daemon: Callable[..., Daemon]) -> None:
    kills(make_daemon("--processors", "4"), 8, seed=7)


@pytest.mark.slow
def test_kills_lose_nothing_and_leak_no_slot(short_dir: Path) -> None:
    """Six turns: the last one ends with everything deleted and trimmed."""
    *_, done = kill_again_and_again(short_dir, seed=2, count=6, deadline=1e18)
    assert done.under_load == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_kills_lose_nothing_and_leak_no_slot(short_dir: Path) -> None:
    *_, done = kill_again_and_again(short_dir, seed=3, count=14, deadline=1e18)
    assert done.under_load == 14
    assert done.starting > 2
