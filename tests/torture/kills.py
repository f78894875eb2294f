"""kills: SIGKILL of a polyvold under load and while it starts; see tests/crash/kills.py."""

import shutil
import time
import traceback
from pathlib import Path

from tests.crash.kills import kill_again_and_again
from tests.support.daemon import short_directory
from tests.torture.campaign import Outcome, fail

NAME = "kills"


class KillCampaign:
    """Turns of load, kill and start on one state."""

    name = NAME
    unit = "kills"
    share = 0.09

    def missing(self) -> str | None:
        return None

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        outcome = Outcome()
        deadline = time.monotonic() + seconds
        with short_directory() as short:
            try:
                for done in kill_again_and_again(short, seed, count=count or 1 << 30, deadline=deadline):
                    outcome.tried["kills"] = done.under_load + done.starting
                    outcome.tried["of them while starting"] = done.starting
                    outcome.tried["KiB relocated"] = done.relocated >> 10
            except Exception as error:
                shutil.copytree(short, directory / "left", ignore=shutil.ignore_patterns("*.sock"))
                (directory / "trace.txt").write_text(traceback.format_exc())
                turns = str(outcome.tried["kills"] - outcome.tried["of them while starting"] + 1)
                what = f"{type(error).__name__}: {error}"
                outcome.failures.append(fail(directory, NAME, what, seed=str(seed), turns=turns))
        return outcome

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """The same draws; what threads do in between differs, so it may take several tries."""
        return self.round(int(facts["seed"]), 1e9, int(facts["turns"]) + 5, directory)
