"""The entry of scripts/flame: a flame graph of the daemon under a load.

How it works      The same volume, generator (`engine/examples/load.rs`) and place as in scripts/bench. perf
                  samples user and kernel stacks of all threads; those of the engine, which has no frame
                  pointers, are unwound from copies of the stack. What a host's own socket calls cost is the
                  client's, and not in the picture.
Errors            exit code 1 with one sentence where perf may not sample.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.benchmark.__main__ import DISK, MEMORY, refuse, work_directory
from scripts.benchmark.cases import POLYVOL, Case, Pattern, name_of
from scripts.benchmark.contenders import Contenders
from scripts.benchmark.load import ROOT, Export, load_command
from scripts.benchmark.quiet import favoured

SECONDS = 4.0
HERTZ = 997
STACK_BYTES = 8192
WORDS: dict[Pattern, str] = {"randread": "read", "randwrite": "write"}
"""The loads that are drawn, and what their pictures are called."""
_LONG_S = 300


def record(case: Case, export: Export, pid: int, tools: Path, directory: Path) -> bytes:
    """The picture of one case."""
    data = directory / "perf.data"
    settings = {"rw": case.pattern, "block": case.block, "depth": case.depth, "seconds": SECONDS + 1}
    load = subprocess.Popen([*map(str, load_command(export, **settings))], stdout=subprocess.DEVNULL)
    try:
        options = ["-q", "-F", str(HERTZ), "--call-graph", f"dwarf,{STACK_BYTES}", "-p", str(pid)]
        command = ["perf", "record", *options, "-o", str(data), "--", "sleep", str(SECONDS)]
        found = subprocess.run(command, check=False, capture_output=True, timeout=_LONG_S)
        assert found.returncode == 0, f"perf may not sample here: {found.stderr.decode().strip()}"
    finally:
        load.kill()
        load.wait()
    title = f"polyvol's CPU time: {case.name}"
    said = b""
    for command in (
        ["perf", "script", "--no-inline", "-i", str(data)],
        [str(tools / "inferno-collapse-perf")],
        [str(tools / "inferno-flamegraph"), "--title", title, "--deterministic", "--minwidth", "0.3"],
    ):
        said = subprocess.run(command, input=said, capture_output=True, check=True, timeout=_LONG_S).stdout
    return said


def main() -> int:
    """The whole of scripts/flame."""
    parser = argparse.ArgumentParser(prog="scripts/flame", description="Draw where polyvol's CPU time goes.")
    parser.add_argument("tools", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pattern", choices=WORDS, help="only this load [all]")
    options = parser.parse_args()
    try:
        for pattern, word in WORDS.items():
            if options.pattern not in (None, pattern):
                continue
            case = Case(name_of(pattern, 4 << 10, 16), pattern, 4 << 10, 16)
            parent = MEMORY if case.writes else DISK
            with (
                work_directory(parent) as directory,
                Contenders(directory, {POLYVOL}) as contenders,
                favoured(),
                contenders[POLYVOL].turn() as (export, pid),
            ):
                picture = record(case, export, pid, options.tools, directory)
            path = ROOT / "docs" / "benchmarks" / f"flame-{word}.svg"
            path.write_bytes(picture)
            print(f"kept in {path.relative_to(ROOT)}")
    except AssertionError as error:
        return refuse(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
