"""fuzzing: scripts/fuzz, which gives what reads peers' and disks' bytes inputs that nobody would think of."""

import re
import shutil
from collections import Counter
from pathlib import Path

from tests.support.proc import Result, run
from tests.torture.campaign import Outcome, fail

NAME = "fuzzing"
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz"
FOUND = SCRIPT.parents[1] / "build" / "fuzz" / "found"


class FuzzingCampaign:
    """All targets in turn; each round begins with what those before have found to reach more code."""

    name = NAME
    unit = "executions"
    share = 0.06

    def missing(self) -> str | None:
        return None if SCRIPT.exists() else f"there is no scripts/{SCRIPT.name}"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        """`count` is left out: targets are fuzzed by time."""
        words = ("--seconds", str(max(10, int(seconds))), "--seed", str(seed))
        return _outcome(run(SCRIPT, *words, timeout_s=seconds + 1800), directory)

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        path = directory / "found" / facts["input"]
        words = ("--target", facts["target"], "--input", str(path))
        ended = run(SCRIPT, *words, timeout_s=1800)
        outcome = Outcome(Counter({"executions": 1}))
        if ended.rc != 0:
            target, name = facts["target"], facts["input"]
            outcome.failures.append(fail(directory, NAME, ended.out[-2000:], target=target, input=name))
        return outcome


def _outcome(ended: Result, directory: Path) -> Outcome:
    outcome = Outcome()
    for target, executions, crashes in re.findall(
        r"^(\S+) executions (\d+) crashes (\d+)$", ended.out, re.MULTILINE
    ):
        outcome.tried["executions"] += int(executions)
        if int(crashes):
            inputs = sorted((FOUND / target).iterdir(), key=lambda path: path.stat().st_mtime)
            shutil.copytree(FOUND / target, directory / "found", dirs_exist_ok=True)
            name = inputs[-1].name if inputs else ""
            what = f"target {target} crashed:\n{ended.out[-2000:]}"
            outcome.failures.append(fail(directory, NAME, what, target=target, input=name))
    if ended.rc != 0 and not outcome.failures:
        what = f"scripts/fuzz ended with {ended.rc}:\n{(ended.out + ended.err)[-2000:]}"
        outcome.failures.append(fail(directory, NAME, what, target="", input=""))
    return outcome
