"""after_images: a service on each of many after-crash images of a recording, in a program of its own.

How it works      `main` is the program of a module that has a recording with a story (atomicity.py,
                  lineage.py): it makes images of drawn moments, in order, starts a service on each, and has
                  the module check it. The recorder is preloaded, so that the service finds another boot id
                  for each. `run_program` runs it on a recording.
Errors            Lost, with the moment and how the image was made. The program: exit code 1 and a sentence.
"""

import argparse
import os
import pickle
import random
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyvol.daemon.check import check_state
from polyvol.daemon.service import Service
from tests.crash.check import lay_out
from tests.crash.disk import POLICIES, Disk
from tests.crash.history import Lost
from tests.crash.recorder import preloaded, read_log
from tests.support.proc import run

Check = Callable[[Service, Any, int, int], None]
"""Checks a service, by the story and the log's length at the moment; the last one is the image's number."""


def main(made_at: Callable[[Any], int], check: Check, *, state_check_every: int) -> None:
    """The program. `made_at`: the log's length from which on there is something to check, by the story. After
    one in `state_check_every` images, the stopped state directory is looked through as well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args()
    boot_id, root = Path(os.environ["RECORDER_BOOT_ID"]), options.root / "root"
    story = pickle.loads((options.recording / "story").read_bytes())
    records = list(read_log(options.recording / "log"))
    length = (options.recording / "log").stat().st_size
    first = next(number for number, one in enumerate(records) if one.at >= made_at(story))
    draw = random.Random(options.seed)
    disk, applied = Disk(), 0
    moments = sorted(draw.randrange(first, len(records)) for _ in range(options.count))
    for number, moment in enumerate(moments):
        while applied <= moment:
            disk.apply(records[applied])
            applied += 1
        policy = draw.choice(POLICIES)
        lay_out(disk.image(policy, draw), root)
        boot_id.write_text(f"{uuid.uuid4()}\n")
        at = records[moment + 1].at if moment + 1 < len(records) else length
        try:
            service = Service(root / "state", processors=2, serve_nbd=False)
            service.start()
            try:
                check(service, story, at, number)
            finally:
                service.stop()
            if number % state_check_every == 0:
                problems = check_state(root / "state", data=True).problems
                if problems:
                    raise Lost("; ".join(problems))
        except Lost as lost:
            raise Lost(f"record {moment}, {policy}: {lost}") from lost


def run_program(module: str, recording: Path, *, seed: int, count: int) -> str:
    """Run a module's program on a recording; what it says is wrong, or ''."""
    with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
        env = preloaded(Path(short) / "boot-id")
        words = ["--seed", str(seed), "--count", str(count), "--root", short]
        ended = run(sys.executable, "-m", module, recording, *words, env=env, timeout_s=280)
    return "" if ended.rc == 0 else f"{ended.out}{ended.err}"
