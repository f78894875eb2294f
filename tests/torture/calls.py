"""calls: a script of verbs, killed before each of its calls in turn; see tests/crash/calls.py."""

import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crash.calls import Moment, Script, moments
from tests.torture.campaign import Outcome, fail
from tests.torture.soak import left

NAME = "calls"
A_ROUND = 25
"""Moments of one round. Rounds have seeds that follow each other, so that some 250 of them try all."""


class CallCampaign:
    """Moments of the script, those of a round after those of the round before."""

    name = NAME
    unit = "moments"
    share = 0.06

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        deadline = time.monotonic() + seconds
        with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
            script = Script(Path(short) / "tried")
            every = moments(script.count())
            number = count or A_ROUND
            chosen = [every[(seed * number + each) % len(every)] for each in range(number)]
            return _try(script, chosen, deadline, Path(short), directory)

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """That moment, some times: what threads do meanwhile differs."""
        with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
            chosen = [Moment.parse(facts["moment"])] * 10
            return _try(Script(Path(short) / "tried"), chosen, 1e18, Path(short), directory)


def _try(script: Script, chosen: list[Moment], deadline: float, short: Path, directory: Path) -> Outcome:
    outcome = Outcome(Counter(moments=0))
    for moment in chosen:
        if time.monotonic() > deadline:
            break
        try:
            hit = script.attempt(moment, random.Random(str(moment)))
        except Exception as error:
            left(short, directory)
            what = f"killed at {moment}: {type(error).__name__}: {error}"
            outcome.failures.append(fail(directory, NAME, what, moment=str(moment)))
            break
        outcome.tried["moments"] += 1
        outcome.tried["with a kill there"] += hit
        outcome.tried["snapshots compared whole"] = script.compared.snapshots
        outcome.tried["volumes compared whole"] = script.compared.volumes
    return outcome
