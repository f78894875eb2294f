"""The entry of scripts/bench: options, the order of the turns, the exit code.

How it works      Case by case, round by round, server by server: whoever is compared is measured within the
                  same minute. What was changed is written out after each turn that writes. At the end the
                  cuts, on a daemon of their own. SIGTERM and SIGINT end everything that was started.
                  What is read is a file of a disk's file system, in the page cache; what is written is in
                  memory (/dev/shm) unless told otherwise: how fast a disk is, is not what is measured, and it
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmark.cases import CASES, Case
from scripts.benchmark.contenders import Contender, settle, started
from scripts.benchmark.cuts import Cuts, measure_cuts
from scripts.benchmark.load import ROOT, measure
from scripts.benchmark.machine import facts, filesystem
from scripts.benchmark.quiet import favoured
from scripts.benchmark.report import Row, case_table, cut_shortfalls, cut_table, rows_of

ROUNDS = 3
SECONDS_QUICK, SECONDS_FULL = 1.0, 5.0
CUTS_QUICK, CUTS_FULL = 20, 40
SPACE_BYTES_MIN = 12 << 30
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
        "--only", metavar="TEXT", help="only cases with this in their name; 'cut' for the cuts"
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


def run_case(case: Case, contenders: dict[str, Contender], directory: Path, seconds: float) -> list[Row]:
    """All rounds of one case."""
    rounds: dict[str, list[Any]] = {name: [] for name in case.servers}
    for _ in range(ROUNDS):
        for name, samples in rounds.items():
            with contenders[name].turn() as export:
                samples.append(measure(case, export, contenders[name].pid, seconds))
            if case.writes:
                settle(directory)
    return rows_of(case, rounds)


def run_cases(wanted: list[Case], parent: Path, seconds: float) -> list[Row]:
    """These cases, which all read or all write; their tables told as they come."""
    rows: list[Row] = []
    if not wanted:
        return rows
    with (
        work_directory(parent) as directory,
        started(directory, snapshots=not wanted[0].writes) as contenders,
    ):
        for case in wanted:
            found = run_case(case, contenders, directory, seconds)
            rows += found
            print(f"\n{case.name}, by {case.generator}\n{case_table(found)}", flush=True)
    return rows


def bench(options: argparse.Namespace) -> int:
    """Measure, tell, keep; the exit code."""
    seconds, cut_count = (SECONDS_QUICK, CUTS_QUICK) if options.quick else (SECONDS_FULL, CUTS_FULL)
    only = options.only
    wanted = [case for case in CASES if (case.quick or not options.quick) and (not only or only in case.name)]
    begun, date, before = time.monotonic(), datetime.now(UTC), os.getloadavg()[0]
    print(
        f"{ROUNDS} rounds of {seconds:g} s, turn by turn; load average at the start {before:.2f}", flush=True
    )
    rows = run_cases([case for case in wanted if not case.writes], options.dir, seconds)
    rows += run_cases([case for case in wanted if case.writes], options.write_dir, seconds)
    cuts: Cuts | None = None
    if not only or "cut" in only:
        with work_directory(options.write_dir) as directory:
            cuts = measure_cuts(directory, cut_count)
        print(f"\n{cut_table(cuts)}")
    others = [sample.other_cores for row in rows for sample in row.rounds]
    if others:
        mean = sum(others) / len(others)
        print(f"\n{NOTES}\nOther programs kept {mean:.2f} cores busy on average, {max(others):.2f} at most.")
    print(f"It took {time.monotonic() - begun:.0f} s.")
    short = [text for row in rows for text in row.shortfalls()] + (cut_shortfalls(cuts) if cuts else [])
    for text in short:
        print(f"SHORT: {text}")
    result = {
        "date": date.isoformat(timespec="seconds"),
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "machine": {
            **facts(),
            "read_on": filesystem(options.dir),
            "write_on": filesystem(options.write_dir),
            "load_average_before": before,
        }
        | {"priority": os.getpriority(os.PRIO_PROCESS, 0)},
        "rounds": ROUNDS,
        "seconds": seconds,
        "other_cores": others and [min(others), sum(others) / len(others), max(others)],
        "rows": [row.as_json() for row in rows],
        "cuts": None
        if cuts is None
        else {"iops": cuts.iops, "otherwise_ms": cuts.otherwise_ms}
        | {"cuts": [vars(cut) for cut in cuts.cuts]},
        "shortfalls": short,
    }
    if options.save:
        kind = "quick" if options.quick else "full"
        path = ROOT / "docs" / "benchmarks" / f"{date:%Y-%m-%d-%H%M}-{kind}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"kept in {path.relative_to(ROOT)}")
    return 1 if options.check and short else 0


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with favoured():
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
