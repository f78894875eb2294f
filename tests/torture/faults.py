"""faults: system calls that fail, one at a time; see tests/crash/faults.py."""

import shutil
from collections import Counter
from pathlib import Path

from tests.crash.faults import Result, try_faults
from tests.torture.campaign import Outcome, fail

NAME = "faults"


class FaultCampaign:
    """One scenario, in which another call fails each time."""

    name = NAME
    unit = "faults"
    share = 0.04

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        timeout_s = seconds + 120
        return _outcome(
            try_faults(seed=seed, count=count or 1 << 30, seconds=seconds, timeout_s=timeout_s), directory
        )

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        return _outcome(try_faults(seed=0, count=1, fault=facts["fault"]), directory)


def _outcome(result: Result, directory: Path) -> Outcome:
    outcome = Outcome(Counter({"faults": result.faults, "images after them": result.images}))
    for failure in result.failures:
        what = f"fault {failure['fault']}: {failure['wrong']}\n{failure['trace']}"
        outcome.failures.append(fail(directory, NAME, what, fault=failure["fault"]))
    return outcome
