"""lineage: many losses of power of recorded rollbacks, clones and deletions; see tests/crash/lineage.py."""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crash.lineage import check_recording, record
from tests.torture.campaign import Outcome, fail

NAME = "lineage"
TURNS = 100
IMAGES = 300
"""Images of one recording."""


class LineageCampaign:
    """A recording of so many steps, every fourth of them cut short by a kill, then images of it."""

    name = NAME
    unit = "images"
    share = 0.05

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        until = time.monotonic() + seconds
        images = count or IMAGES
        turns = min(TURNS, 8 * images)
        with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
            recording = Path(short) / "recording"
            try:
                record(recording, seed, turns, kill_every=4)
            except Exception as error:
                what = f"the load failed: {type(error).__name__}: {error}"
                return Outcome(failures=[fail(directory, NAME, what, seed=str(seed), images="0")])
            if time.monotonic() > until:
                return Outcome(Counter({"images": 0, "kills": turns // 4}))
            said = check_recording(recording, seed=seed, count=images)
            outcome = Outcome(Counter({"images": images, "kills": turns // 4}))
            if said:
                shutil.copytree(recording, directory, dirs_exist_ok=True)
                outcome.failures.append(fail(directory, NAME, said, seed=str(seed), images=str(images)))
        return outcome

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """Those images of that recording; or the load, if it was the load that failed."""
        seed, images = int(facts["seed"]), int(facts["images"])
        if not images:
            return self.round(seed, 1e9, 1, directory)
        said = check_recording(directory, seed=seed, count=images)
        outcome = Outcome(Counter({"images": images}))
        if said:
            outcome.failures.append(fail(directory, NAME, said, seed=str(seed), images=str(images)))
        return outcome
