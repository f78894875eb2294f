"""beside: this tree beside another one that is built, such as the tree before a change, in one run.

How it works      A polyvold of each tree serves volumes of its own, from files in memory. Load by load they
                  take turns, and who begins changes from round to round, so that what slows the machine down
                  slows both. A figure is the median over the rounds of the ratio of two turns that follow
                  each other: of rates, and of the server's CPU time for each request. The stall of cuts is
                  the median of each tree's cuts.
Owner and locks   `beside` ends both daemons, whatever happens.
Errors            AssertionError with a daemon's own output when it does not start.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from polyvol.daemon.client.cli.client import Client
from scripts.benchmark import cases
from scripts.benchmark.cases import Case
from scripts.benchmark.contenders import Standing, add_log, adopt, fill, settle
from scripts.benchmark.load import Sample, load_command, measure
from scripts.benchmark.quiet import favour
from tests.support.daemon import Daemon
from tests.support.proc import Argument, Background

HERE, OTHER = "this tree", "the other"
ROUNDS = 7
SECONDS = 1.0
CUTS = 40
RATE_MIN, CPU_MAX = 0.9, 1.1
"""Where both medians are beyond these, this tree is slower. A tree beside itself is within them."""
_LOADS = (
    ("randread", 1, 1),
    ("randread", 16, 1),
    ("randread", 16, 4),
    ("randwrite", 1, 1),
    ("randwrite", 16, 1),
    ("randwrite", 16, 4),
)


@dataclass(frozen=True)
class Compared:
    """A load: this tree's rate and CPU time for each request over the other's."""

    name: str
    rate: float
    cpu: float

    @property
    def slower(self) -> bool:
        """Whether this tree is slower, beyond what noise explains."""
        return self.rate < RATE_MIN and self.cpu > CPU_MAX

    def __str__(self) -> str:
        verdict = "SLOWER" if self.slower else "as fast"
        return f"{self.name:42}  rate {self.rate:4.2f}  CPU for each request {self.cpu:4.2f}  {verdict}"


class _OfTree(Daemon):
    """A polyvold of a tree that is built."""

    def __init__(self, tree: Path, directory: Path) -> None:
        super().__init__(directory)
        self.tree = tree

    def command(self) -> list[Argument]:
        return [self.tree / ".venv" / "bin" / "polyvold", "--state-dir", self.state_dir]


def loads() -> list[Case]:
    """What is measured: the main loads, and first overwrites."""
    both = (HERE, OTHER)
    found = [
        Case(
            cases.name_of(pattern, 4 << 10, depth, count),
            pattern,
            4 << 10,
            depth,
            both,
            "load",
            connections=count,
        )
        for pattern, depth, count in _LOADS
    ]
    for pattern in ("read", "write"):
        found.append(Case(cases.name_of(pattern, 128 << 10, 8), pattern, 128 << 10, 8, both, "load"))
    name, requests = "4k first overwrite, depth 16", cases.FIRST_OVERWRITES
    return [*found, Case(name, "randwrite", 4 << 10, 16, both, "load", requests=requests)]


@contextmanager
def _served(tree: Path, directory: Path) -> Iterator[tuple[Standing, Standing]]:
    """A polyvold of this tree, and two volumes: written in place, and with a snapshot before each turn."""
    directory.mkdir()
    with _OfTree(tree, directory) as daemon:
        favour(daemon.pid)
        served = []
        for name in ("plain", "cut"):
            base = directory / f"{name}.img"
            fill(base)
            served.append(adopt(daemon, name, base))
            add_log(daemon, name)
        plain, cut = served
        yield Standing(daemon.pid, plain), Standing(daemon.pid, cut, Client(daemon.state_dir))


def _turn(server: Standing, case: Case) -> Sample:
    with server.turn() as (export, pid):
        return measure(case, export, pid, SECONDS)


def _compare(case: Case, here: Standing, other: Standing, directory: Path) -> Compared:
    rates, cpu = [], []
    for number in range(ROUNDS):
        pair = [here, other] if number % 2 == 0 else [other, here]
        samples = []
        for server in pair:
            samples.append(_turn(server, case))
            if case.writes:
                settle(directory)
        mine, its = samples if number % 2 == 0 else reversed(samples)
        rates.append(mine.iops / its.iops)
        cpu.append(mine.server_us / its.server_us)
    return Compared(case.name, median(rates), median(cpu))


def _stall_ms(server: Standing, directory: Path) -> float:
    """The median stall of cuts under random writes, milliseconds."""
    assert server.client is not None, "this volume is the one with snapshots"
    command = load_command(server.export, rw="randwrite", depth=32, seconds=60)
    stalls = []
    with Background(*command, log=directory / "load.log"):
        for number in range(CUTS):
            name = f"cut{number}"
            body = {"volumes": [server.export.name], "name": name}
            (view,) = server.client.post("snapshots", body=body)
            stalls.append(view["stall_ns"] / 1e6)
            server.client.delete("volumes", server.export.name, "snapshots", name)
    return median(stalls)


def beside(tree: Path, here: Path, directory: Path) -> bool:
    """Measure both trees and print the table; whether this one is as fast."""
    with ExitStack() as stack:
        mine = stack.enter_context(_served(here, directory / "a"))
        its = stack.enter_context(_served(tree, directory / "b"))
        found = []
        for case in loads():
            index = 1 if case.requests else 0
            found.append(_compare(case, mine[index], its[index], directory))
            print(found[-1], flush=True)
        stalls = [_stall_ms(server, directory) for server in (mine[1], its[1])]
    print(f"stall of cuts, median: {stalls[0]:.3f} ms, the other {stalls[1]:.3f} ms")
    return not any(one.slower for one in found)
