"""cuts: how long a cut of a large volume under load keeps writes waiting.

How it works      A volume of 1 TiB on sparse devices, 64 MiB partitions, gets 4k random writes over all of it
                  at depth 32, while snapshots are taken, one after the other. The engine reports each
                  cut's stall; the generator lists every write of SLOW_US or more with the time of its end, by
                  the same clock as the cuts' instants. A write counts as one around a cut if it was under way
                  within AROUND_NS of the instant; the rest of the time that a snapshot takes to become
                  durable is looked at too, and the time outside of any call, for comparison.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyvol.daemon.client.cli.client import Client
from scripts.benchmark.load import Export, load_command
from scripts.benchmark.quiet import favour
from tests.support.daemon import Daemon

SIZE = "1T"
DEPTH = 32
AROUND_NS = 20_000_000
SLOW_US = 500
_SECONDS_MAX = 180
_WARM_UP_S = 0.5
_PAUSE_S = 0.1
_KEPT = 50


@dataclass(frozen=True)
class Cut:
    """One cut, in milliseconds: the stall that the engine reports; the longest write around the instant; the
    longest while the snapshot was being made durable; how long the call took."""

    stall_ms: float
    around_ms: float
    settling_ms: float
    call_ms: float


@dataclass(frozen=True)
class Cuts:
    """All cuts, and the writes during them; `otherwise_ms` is the longest write outside of any call."""

    cuts: list[Cut]
    iops: float
    otherwise_ms: float

    def median(self, field: str) -> float:
        """The median of one of the cuts' figures."""
        return float(statistics.median(getattr(cut, field) for cut in self.cuts))

    def longest(self, field: str) -> float:
        """The largest of one of the cuts' figures."""
        return float(max(getattr(cut, field) for cut in self.cuts))


def measure_cuts(directory: Path, count: int) -> Cuts:
    """Take so many cuts under load, on a daemon of its own."""
    with _loaded(directory) as (client, load):
        time.sleep(_WARM_UP_S)
        taken = [_take(client, number) for number in range(count)]
        out, err = load.communicate(timeout=_SECONDS_MAX)
    assert load.returncode == 0, err.decode()
    return _judge(taken, json.loads(out))


def measure_rate(directory: Path, seconds: float) -> float:
    """Cuts in a second under the same load, one after the other without a pause, for so long.

    Each is a whole snapshot, durable and exported; the oldest are deleted between them, outside the time.
    """
    count, spent = 0, 0.0
    with _loaded(directory) as (client, load):
        time.sleep(_WARM_UP_S)
        while spent < seconds:
            began = time.monotonic()
            client.post("snapshots", body={"volumes": ["wide"], "name": f"cut{count}"})
            spent += time.monotonic() - began
            if count >= _KEPT:
                client.delete("volumes", "wide", "snapshots", f"cut{count - _KEPT}")
            count += 1
        _, err = load.communicate(timeout=_SECONDS_MAX)
    assert load.returncode == 0, err.decode()
    return count / spent


@contextmanager
def _loaded(directory: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A daemon with a volume under load, until the load's standard input is closed."""
    directory.mkdir(exist_ok=True)
    with Daemon(directory) as daemon:
        favour(daemon.pid)
        for name, size in (("a", "600G"), ("b", "600G"), ("log", "64G")):
            daemon.add_devices(name, size=size)
        devices = ["--device", "a", "--device", "b", "--log-device", "log"]
        daemon.ok("volume", "create", "wide", "--size", SIZE, *devices)
        client = Client(daemon.state_dir)
        command = load_command(
            Export(daemon.nbd_socket, "wide"),
            rw="randwrite",
            depth=DEPTH,
            slow_us=SLOW_US,
            seconds=_SECONDS_MAX,
        )
        load = subprocess.Popen(
            [*map(str, command), "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with load:
            try:
                yield client, load
            finally:
                load.kill()


@dataclass(frozen=True)
class _Taken:
    begun_ns: int
    instant_ns: int
    ended_ns: int
    stall_ns: int


def _take(client: Client, number: int) -> _Taken:
    begun = time.time_ns()
    (view,) = client.post("snapshots", body={"volumes": ["wide"], "name": f"cut{number}"})
    ended = time.time_ns()
    time.sleep(_PAUSE_S)
    return _Taken(begun, view["created_ns"], ended, view["stall_ns"])


def _judge(taken: list[_Taken], said: dict[str, Any]) -> Cuts:
    slow = [(end - latency, end) for end, latency in said["slow"]]

    def longest(begin: int, end: int) -> float:
        found = (write[1] - write[0] for write in slow if write[0] < end and write[1] > begin)
        return max(found, default=0) / 1e6

    between = pairwise(taken)
    return Cuts(
        cuts=[
            Cut(
                stall_ms=cut.stall_ns / 1e6,
                around_ms=longest(cut.instant_ns - AROUND_NS, cut.instant_ns + AROUND_NS),
                settling_ms=longest(cut.instant_ns + AROUND_NS, cut.ended_ns),
                call_ms=(cut.ended_ns - cut.begun_ns) / 1e6,
            )
            for cut in taken
        ],
        iops=said["requests"] / said["seconds"],
        otherwise_ms=max((longest(cut.ended_ns, after.begun_ns) for cut, after in between), default=0.0),
    )
