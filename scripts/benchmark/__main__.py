"""The entry of scripts/bench: options, the order of the turns, the exit code.

How it works      Case by case, round by round, server by server: all servers of a comparison are measured
                  within the same minute. A turn during which other programs were too busy is repeated, a
                  bounded number of times in all, and the least disturbed try counts. What was changed is
                  written out after each turn that writes. At the end what stands by itself (`alone.py`), and
                  the table of the targets. How long a turn is follows from how many there are, so that a run
                  ends in its time. SIGTERM and SIGINT end everything that was started.
                  What is read is a file of a disk's file system, in the page cache; what is written is in
                  memory (/dev/shm) by default: the speed of a disk is not what is measured, and it
                  would hide what is. (Reads from memory would not be fair: /dev/shm cannot tell whether a
                  read would block, so a server that asks has to treat all as if they would.) Where it may,
                  everything runs at a higher priority than other programs, all servers and loads at the same
                  (`quiet.py`).
Errors            exit code 1 with --check when a target was missed; 1 with one sentence when nothing could be
                  measured; 2 for wrong usage.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmark.alone import ALONE, FULL, QUICK
from scripts.benchmark.beside import beside
from scripts.benchmark.cases import CASES, Case
from scripts.benchmark.charts import draw
from scripts.benchmark.contenders import Contenders, settle
from scripts.benchmark.load import ROOT, Sample, measure
from scripts.benchmark.machine import facts, filesystem
from scripts.benchmark.quiet import favoured, kept_memory
from scripts.benchmark.report import Row, case_table, figure_table, rows_of, target_table
from scripts.benchmark.targets import Verdict, fails, verdicts

ROUNDS = 3
SECONDS_MIN, SECONDS_QUICK, SECONDS_FULL = 0.3, 1.0, 5.0
BUDGET_QUICK_S, BUDGET_FULL_S = 170.0, 1600.0
ALONE_QUICK_S, ALONE_FULL_S = 60.0, 470.0
"""What making the servers ready and the figures that stand by themselves take of the budget."""
KEPT_QUICK_BYTES, KEPT_FULL_BYTES = 4 << 30, 14 << 30
"""Memory that is kept from going back to a host: what is written at a time, most of it by the cuts' load."""
TURN_EXTRA_S = 0.4
REPEATS_QUICK, REPEATS_FULL = 10, 60
DISTURBED_CORES = 0.4
SPACE_BYTES_MIN = 16 << 30
PREFIX = "pvb-"
DISK = Path("/tmp")
MEMORY = Path("/dev/shm")
NOTES = """\
Rates are thousands of requests per second (k/s) or MiB/s, +-% is how far the rounds are apart; p50, p99,
p99.9 are the client's latencies in us; CPU/req is the server's CPU time in us for each request; memory its
peak in MiB; client the cores that the load generator kept busy, * where it may be what bounds the rate; the
last columns are the rate over that server's in the same round. All are medians of the rounds."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure polyvol beside other NBD servers."
    )
    parser.add_argument(
        "--quick", action="store_true", help="the important cases only, in under three minutes"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--save", action="store_true", help="keep the figures in docs/benchmarks")
    parser.add_argument(
        "--only", metavar="TEXT", help="only cases, and figures by themselves, with this in their name"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="TREE",
        help="this tree beside another that is set up, such as the one before a change; no other servers",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each case [{ROUNDS}]")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="length of a turn, to try cases out: everything else gets small too, and no turn is repeated",
    )
    parser.add_argument("--dir", type=Path, default=DISK, help=f"where what is read goes [{DISK}]")
    parser.add_argument(
        "--write-dir", type=Path, default=MEMORY, help=f"where what is written goes [{MEMORY}]"
    )
    return parser.parse_args()


@contextmanager
def work_directory(parent: Path) -> Iterator[Path]:
    """A directory with a short path for everything, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Patience:
    """How many turns more there may be, in place of turns that other programs disturbed."""

    def __init__(self, turns: int) -> None:
        self.left = turns

    def again(self, sample: Sample) -> bool:
        """Whether a turn is to be repeated, which uses up one of those left."""
        disturbed = sample.other_cores > DISTURBED_CORES and self.left > 0
        self.left -= disturbed
        return disturbed


def run_case(
    case: Case, contenders: Contenders, options: argparse.Namespace, seconds: float, patience: Patience
) -> list[Row]:
    """All rounds of one case."""
    rounds: dict[str, list[Sample]] = {name: [] for name in case.servers}
    turns = turns_of(case, options)
    seconds = seconds if turns == 1 else max(SECONDS_MIN, seconds * length_of(turns))
    if case.snapshots and contenders.many is not None:
        contenders.many.have(case.snapshots, case.region)
        settle(contenders.directory)
    for _ in range(options.rounds * turns):
        for name, samples in rounds.items():
            tries: list[Sample] = []
            while not tries or patience.again(tries[-1]):
                with contenders[name].turn() as (export, pid):
                    tries.append(measure(case, export, pid, seconds))
                if case.writes:
                    settle(contenders.directory)
            samples.append(min(tries, key=lambda sample: sample.other_cores))
    return rows_of(case, rounds)


def run_cases(
    wanted: list[Case], options: argparse.Namespace, seconds: float, patience: Patience
) -> list[Row]:
    """These cases, whose files are in the same place; their tables printed one by one."""
    rows: list[Row] = []
    if not wanted:
        return rows
    parent = options.write_dir if wanted[0].place == "write" else options.dir
    servers = {name for case in wanted for name in case.servers}
    with work_directory(parent) as directory, Contenders(directory, servers) as contenders:
        for case in wanted:
            found = run_case(case, contenders, options, seconds, patience)
            rows += found
            print(f"\n{case.title}\n{case_table(found)}", flush=True)
    return rows


def run_alone(options: argparse.Namespace) -> dict[str, float]:
    """The figures that stand by themselves."""
    figures: dict[str, float] = {}
    scale = QUICK if options.quick else FULL
    if options.seconds:
        scale = replace(QUICK, cuts=5, seconds=max(0.2, options.seconds), trim_gib=2)
    for name, place, quick, function in ALONE:
        if (options.quick and not quick) or (options.only and options.only not in name):
            continue
        with work_directory(options.write_dir if place == "write" else options.dir) as directory:
            found = function(directory, scale)
        figures |= found
        print(f"\n{name}\n{figure_table(found)}", flush=True)
    return figures


def turns_of(case: Case, options: argparse.Namespace) -> int:
    """How many turns each server has in a round."""
    return 1 if options.quick or options.seconds else case.turns


def length_of(turns: int) -> float:
    """How long each of so many turns in a round is, over one that is alone there."""
    return 1.0 if turns == 1 else 0.5


def turn_seconds(options: argparse.Namespace, wanted: list[Case]) -> float:
    """How long a turn may take so that the whole run ends in time."""
    if options.seconds:
        return float(options.seconds)
    budget, alone, longest = (
        (BUDGET_QUICK_S, ALONE_QUICK_S, SECONDS_QUICK)
        if options.quick
        else (BUDGET_FULL_S, ALONE_FULL_S, SECONDS_FULL)
    )
    repeats: int = REPEATS_QUICK if options.quick else REPEATS_FULL
    counts = [(len(case.servers) * options.rounds, turns_of(case, options)) for case in wanted]
    turns = repeats + sum(servers * count for servers, count in counts)
    lengths = repeats + sum(servers * count * length_of(count) for servers, count in counts)
    fitting = (budget - alone - turns * TURN_EXTRA_S) / lengths
    return float(max(SECONDS_MIN, min(longest, fitting)))


def kept_bytes(options: argparse.Namespace) -> int:
    """How much memory is kept ready."""
    if options.seconds:
        return 0
    return KEPT_QUICK_BYTES if options.quick else KEPT_FULL_BYTES


def result_of(
    options: argparse.Namespace, rows: list[Row], figures: dict[str, float], found: list[Verdict]
) -> dict[str, Any]:
    """What is kept of a run."""
    others = [sample.other_cores for row in rows for sample in row.rounds]
    return {
        "date": options.date.isoformat(timespec="seconds"),
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "machine": {
            **facts(),
            "read_on": filesystem(options.dir),
            "write_on": filesystem(options.write_dir),
            "load_average_before": options.load_before,
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
        },
        "rounds": options.rounds,
        "other_cores": others and [min(others), sum(others) / len(others), max(others)],
        "rows": [row.as_json() for row in rows],
        "figures": figures,
        "targets": [vars(verdict) for verdict in found],
    }


def keep(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The figures and charts in docs/benchmarks."""
    kind = "quick" if options.quick else "full"
    stem = ROOT / "docs" / "benchmarks" / f"{options.date:%Y-%m-%d-%H%M}-{kind}"
    stem.parent.mkdir(exist_ok=True)
    path = stem.with_name(f"{stem.name}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    for written in (path, *draw(result, stem)):
        print(f"kept in {written.relative_to(ROOT)}")


def bench(options: argparse.Namespace) -> int:
    """Measure, tell, keep; the exit code."""
    if options.beside is not None:
        with work_directory(options.write_dir) as directory:
            as_fast = beside(options.beside.resolve(), ROOT, directory)
        return 1 if options.check and not as_fast else 0
    only = options.only
    wanted = [case for case in CASES if (case.quick or not options.quick) and (not only or only in case.name)]
    seconds = turn_seconds(options, wanted)
    begun = time.monotonic()
    print(
        f"{options.rounds} rounds of {seconds:.2g} s, turn by turn;"
        f" load average at the start {options.load_before:.2f}",
        flush=True,
    )
    patience = Patience(0 if options.seconds else REPEATS_QUICK if options.quick else REPEATS_FULL)
    rows: list[Row] = []
    for place in ("read", "write", "durable"):
        rows += run_cases([case for case in wanted if case.place == place], options, seconds, patience)
    figures = run_alone(options)
    found = verdicts([(row.case, row.beside) for row in rows], figures)
    others = [sample.other_cores for row in rows for sample in row.rounds]
    if others:
        mean = sum(others) / len(others)
        print(f"\n{NOTES}\nOther programs kept {mean:.2f} cores busy on average, {max(others):.2f} at most.")
    print(f"\n{target_table(found)}\n\nIt took {time.monotonic() - begun:.0f} s.")
    if options.save:
        keep(options, result_of(options, rows, figures, found))
    return 1 if options.check and fails(found, complete=not (options.quick or only)) else 0


def main() -> int:
    """The whole of scripts/bench."""
    options = parse()
    for option, path in (("--dir", options.dir), ("--write-dir", options.write_dir)):
        if not path.is_dir():
            return refuse(f"{path} is not a directory: name one with {option}")
        free, needed = free_bytes(path), SPACE_BYTES_MIN
        if free < needed:
            return refuse(
                f"{path} has {free >> 30} GiB free and {needed >> 30} are needed: name another with {option}"
            )
    if options.beside is not None and not (options.beside / ".venv/bin/polyvold").exists():
        return refuse(f"{options.beside} is not a tree that is set up: run its scripts/setup first")
    names = [case.name for case in CASES] + [name for name, *_ in ALONE]
    if options.only and not any(options.only in name for name in names):
        return refuse(f"no case has {options.only!r} in its name: scripts/benchmark/cases.py has them")
    if options.rounds < 1 or options.seconds < 0:
        return refuse("--rounds is at least 1, and --seconds not below 0")
    options.date, options.load_before = datetime.now(UTC), os.getloadavg()[0]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with favoured(), kept_memory(kept_bytes(options)):
            return bench(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except AssertionError as error:
        return refuse(str(error))


def free_bytes(path: Path) -> int:
    """What can be stored there; in memory not more than there is of it."""
    free = shutil.disk_usage(path).free
    if filesystem(path) != "tmpfs":
        return free
    (line,) = (
        row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable:")
    )
    return min(free, int(line.split()[1]) << 10)


def refuse(why: str) -> int:
    """Say why it cannot be."""
    print(f"bench: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
