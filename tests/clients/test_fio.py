"""test_fio: verified load while snapshots come and go, and how long a cut keeps writes waiting.

How it works      fio writes blocks that carry a checksum of themselves and verifies them at the end;
                  snapshots are taken, read and deleted during that. The stall is taken from what the engine
                  reports and, for a client, from writes of its own that each wait for the one before.
"""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clients.system import delete_when_unused
from tests.support import fio, nbd
from tests.support.daemon import Daemon
from tests.support.proc import Background

CUTS = 20
STALL_MAX_NS = 10_000_000
PACE_S = 0.05


def snapshots_meanwhile(daemon: Daemon, volume: str, seconds: float) -> int:
    """Take, read and delete snapshots for a while; how many."""
    taken = 0
    held: dict[str, bytes] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = f"s{taken}"
        daemon.api.post("snapshots", body={"volumes": [volume], "name": name})
        taken += 1
        held[name] = nbd.read_all(daemon.uri(f"{volume}@{name}"))
        if len(held) > 2:
            old = next(iter(held))
            assert nbd.read_all(daemon.uri(f"{volume}@{old}")) == held.pop(old), "a snapshot has changed"
            delete_when_unused(daemon, volume, old)
    return taken


def load_with_snapshots(daemon: Daemon, seconds: float, **settings: Any) -> None:
    """The volume and all the snapshots that there are at once fit into its change log many times over."""
    volume = daemon.make_volume("v", size="8M", partition_size="1M")
    log = daemon.directory / "fio.log"
    timed = {"time_based": 1, "runtime": int(seconds), **settings}
    with fio.loading(daemon.uri(volume), log, size="8M", **timed):
        taken = snapshots_meanwhile(daemon, volume, seconds - 0.5)
    assert taken > 2, f"only {taken} snapshots"


@pytest.mark.slow
def test_blocks_verify_while_snapshots_come_and_go(daemon: Daemon) -> None:
    load_with_snapshots(daemon, 4)


@pytest.mark.slow
@pytest.mark.parametrize("bs", ["512", "4k", "6k", "1m"])
def test_blocks_of_any_size_verify_while_snapshots_come_and_go(daemon: Daemon, bs: str) -> None:
    load_with_snapshots(daemon, 8, bs=bs, rw="randrw")


class Waiter:
    """A client with one write at a time, and when each was under way."""

    def __init__(self, address: str, offset: int) -> None:
        self._address = address
        self._offset = offset
        self._stop = threading.Event()
        self._writes: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def longest_ns(self, instant_ns: int, stall_ns: int) -> int:
        """The longest write that met a cut."""
        first, last = instant_ns - stall_ns, instant_ns + stall_ns
        return max((end - begun for begun, end in self._writes if begun <= last and first <= end), default=0)

    def end(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with nbd.connect(self._address) as handle:
            data = bytes(4096)
            while not self._stop.is_set():
                begun = time.time_ns()
                handle.pwrite(data, self._offset)
                self._writes.append((begun, time.time_ns()))


def cut_stalls(daemon: Daemon, log: Path) -> tuple[list[int], list[int]]:
    """CUTS cuts of volume v under load: what the engine reports, and the writes of a client that met them."""
    cuts: list[tuple[int, int]] = []
    timed: dict[str, Any] = {"time_based": 1, "runtime": 100, "norandommap": 1}
    plain: dict[str, Any] = dict.fromkeys(("verify", "verify_fatal", "do_verify"))
    load = fio.job(daemon.uri("v"), size="1T", depth=32, **timed, **plain)
    with Background(*load, log=log) as process:
        waiter = Waiter(daemon.uri("v"), 0)
        try:
            time.sleep(1)
            for number in range(CUTS):
                made = daemon.api.post("snapshots", body={"volumes": ["v"], "name": f"s{number}"})
                cuts.append((made[0]["created_ns"], made[0]["stall_ns"]))
                time.sleep(PACE_S)
            assert process.rc is None, f"the load ended before the cuts:\n{process.said()[:2000]}"
        finally:
            waiter.end()
    return [stall for _, stall in cuts], [waiter.longest_ns(*cut) for cut in cuts]


@pytest.mark.slow
@pytest.mark.alone
def test_a_cut_of_a_tebibyte_stalls_writes_for_milliseconds_at_most(daemon: Daemon) -> None:
    place: list[str] = []
    for number in range(2):
        daemon.add_devices(f"big{number}", size="600G")
        place += ["--device", f"big{number}"]
    daemon.add_devices("log", size="16G")
    daemon.ok("volume", "create", "v", "--size", "1T", *place, "--log-device", "log")
    assert daemon.volume("v")["partition_count"] == 16384
    reported, seen = cut_stalls(daemon, daemon.directory / "fio.log")
    figures = f"engine {sorted(reported)}, client {sorted(seen)}"
    assert statistics.median(reported) <= STALL_MAX_NS, figures
    assert statistics.median(seen) <= STALL_MAX_NS, figures
