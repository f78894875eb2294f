"""soak: what users and polyvold's own threads do at one time, under kills; see tests/crash/soak.py."""

import shutil
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.crash.soak import Done, soak
from tests.support.proc import check
from tests.torture.campaign import Outcome, fail

NAME = "soak"


class SoakCampaign:
    """Turns of load, kill, start and a comparison of everything, on one state."""

    name = NAME
    unit = "kills"
    share = 0.14

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        outcome, done = Outcome(Counter(kills=0)), Done()
        deadline = time.monotonic() + seconds
        with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
            try:
                for done in soak(Path(short), seed, count=count or 1 << 30, deadline=deadline):
                    outcome.tried = _counted(done)
            except Exception as error:
                left(Path(short), directory)
                turns = str(done.kills + done.stops + 1)
                what = f"{type(error).__name__}: {error}"
                outcome.failures.append(fail(directory, NAME, what, seed=str(seed), turns=turns))
        return outcome

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """The same draws; what threads do in between differs, so it may take several tries."""
        return self.round(int(facts["seed"]), 1e9, int(facts["turns"]) + 5, directory)


def left(short: Path, directory: Path) -> None:
    """Keep what a failure has left: the state, polyvold's log, the verbs, and where it failed."""
    check("cp", "-a", "--sparse=always", short, directory / "left")
    (directory / "trace.txt").write_text(traceback.format_exc())


def _counted(done: Done) -> Counter[str]:
    return Counter(
        {
            "kills": done.kills + done.starting,
            "of them while starting": done.starting,
            "verbs": done.verbs,
            "writes": done.writes,
            "snapshots compared whole": done.compared.snapshots,
            "volumes compared whole": done.compared.volumes,
        }
    )
