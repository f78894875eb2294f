"""calls: a script of verbs, killed before the K-th call of each of its steps; see tests/crash/calls.py."""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crash.calls import Pass, Script, Tried, passes
from tests.torture.campaign import Outcome, fail
from tests.torture.soak import left

NAME = "calls"
A_ROUND = 3
"""Passes of one round."""


class CallCampaign:
    """Passes through the script. Rounds have seeds that follow each other, so that each goes on where the one
    before has ended, and some ninety of them try every call."""

    name = NAME
    unit = "kills"
    share = 0.06

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        every, number = passes(), count or A_ROUND
        chosen = [every[(seed * number + each) % len(every)] for each in range(number)]
        return _try(chosen, time.monotonic() + seconds, directory)

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """That pass, several times, because its threads are timed differently."""
        return _try([Pass.parse(facts["pass"])] * 5, 1e18, directory)


def _try(chosen: list[Pass], deadline: float, directory: Path) -> Outcome:
    outcome = Outcome(Counter(kills=0))
    with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
        script = Script(Path(short) / "tried")
        for one in chosen:
            if time.monotonic() > deadline:
                break
            try:
                script.run(one)
            except Exception as error:
                left(Path(short), directory)
                what = f"pass {one}: {type(error).__name__}: {error}"
                outcome.failures.append(fail(directory, NAME, what, **{"pass": str(one)}))
                break
            finally:
                outcome.tried = _counted(script.tried)
    return outcome


def _counted(tried: Tried) -> Counter[str]:
    return Counter(
        {
            "kills": tried.kills + tried.starting,
            "of them while starting": tried.starting,
            "passes": tried.passes,
            "snapshots compared whole": tried.compared.snapshots,
            "volumes compared whole": tried.compared.volumes,
        }
    )
