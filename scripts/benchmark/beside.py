"""beside: this tree beside another one that is built, such as the tree before a change, in one run.

How it works      A polyvold of each tree serves volumes of its own, from files in memory. Load by load they
                  take turns, and who begins changes from round to round, so that what slows the machine down
                  slows both. A figure is the median over the rounds of the ratio of two turns that follow
                  each other: of rates, and of the server's CPU time for each request. Half of the rounds are
                  made with the trees exchanged: whose files were made first has the better pages in memory,
                  which is up to a quarter of the CPU time of large reads. The stall of cuts is the median
                  of each tree's cuts.
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
from scripts.benchmark.cases import Case, Pattern
from scripts.benchmark.contenders import Standing, add_log, adopt, fill, settle
from scripts.benchmark.load import Sample, load_command, measure
from scripts.benchmark.quiet import favour
from tests.support.daemon import Daemon
from tests.support.proc import TIMEOUT_S, Argument, Background, Result, run

HERE, OTHER = "this tree", "the other"
ROUNDS = 5
SECONDS = 1.0
CUTS = 25
RATE_MIN, CPU_MAX = 0.9, 1.1
"""Where both medians are beyond these, this tree is slower. A tree beside itself is within them."""
_LOADS: tuple[tuple[Pattern, int, int], ...] = (
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

    def cli(self, *arguments: Argument, timeout_s: float = TIMEOUT_S) -> Result:
        """Run the tree's own `polyvol`: another one may send what its polyvold does not know."""
        env = {"POLYVOL_STATE": str(self.state_dir)}
        return run(self.tree / ".venv" / "bin" / "polyvol", *arguments, env=env, timeout_s=timeout_s)


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
    in_order: tuple[Pattern, Pattern] = ("read", "write")
    for pattern in in_order:
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


def _ratios(case: Case, here: Standing, other: Standing, directory: Path) -> list[tuple[float, float]]:
    """This tree's rate and CPU time over the other's, for each round."""
    found = []
    for number in range(ROUNDS):
        samples = {}
        for server in (here, other) if number % 2 == 0 else (other, here):
            samples[server.pid] = _turn(server, case)
            if case.writes:
                settle(directory)
        mine, its = samples[here.pid], samples[other.pid]
        found.append((mine.iops / its.iops, mine.server_us / its.server_us))
    return found


def _stalls_ms(server: Standing, directory: Path) -> list[float]:
    """The stalls of cuts under random writes, milliseconds."""
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
    return stalls


def beside(tree: Path, here: Path, directory: Path) -> bool:
    """Measure both trees and print the table; whether this one is as fast."""
    ratios: dict[str, list[tuple[float, float]]] = {case.name: [] for case in loads()}
    stalls: dict[Path, list[float]] = {here: [], tree: []}
    for number, order in enumerate(((here, tree), (tree, here))):
        with ExitStack() as stack:
            served = {
                one: stack.enter_context(_served(one, directory / f"{number}{index}"))
                for index, one in enumerate(order)
            }
            for case in loads():
                pair = [served[one][1 if case.requests else 0] for one in (here, tree)]
                ratios[case.name] += _ratios(case, pair[0], pair[1], directory)
            for one in order:
                stalls[one] += _stalls_ms(served[one][1], directory)
    found = [
        Compared(name, median(rate for rate, _ in each), median(cpu for _, cpu in each))
        for name, each in ratios.items()
    ]
    for compared in found:
        print(compared)
    print(f"stall of cuts, median: {median(stalls[here]):.3f} ms, the other {median(stalls[tree]):.3f} ms")
    return not any(one.slower for one in found)
