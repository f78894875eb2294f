"""power_cuts: many losses of power of one recorded run of polyvold; see tests/crash/power_cuts.py."""

import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crash.power_cuts import Result, check_recording
from tests.crash.workload import Recording, record
from tests.torture.campaign import Outcome, fail

NAME = "power-cuts"
IMAGES = 1200
"""Images of one recording."""


class PowerCutCampaign:
    """A recording of a few seconds, then images of it."""

    name = NAME
    unit = "images"
    share = 0.17

    def missing(self) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        draw = random.Random(seed)
        until = time.monotonic() + seconds
        load_s, sync_us, kills = draw.uniform(1, 3), draw.choice((0, 200, 1000)), draw.choice((0, 0, 1, 2))
        with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
            try:
                recording = record(Path(short) / "recording", seed, load_s, sync_us=sync_us, kills=kills)
            except Exception as error:
                what = f"the load failed: {type(error).__name__}: {error}"
                return Outcome(failures=[fail(directory, NAME, what, seed=str(seed), image="")])
            left = max(1.0, until - time.monotonic())
            result = check_recording(
                recording, seed=seed, count=count or IMAGES, seconds=left, timeout_s=left + 120
            )
            outcome = _outcome(result)
            outcome.tried["KiB relocated"] = recording.load().relocated >> 10
            for failure in result.failures:
                shutil.copytree(recording.directory, directory, dirs_exist_ok=True)
                what = f"image {failure['image']}: {failure['wrong']}\n{failure['trace']}"
                noted = fail(directory, NAME, what, seed=str(seed), image=failure["image"])
                outcome.failures.append(noted)
        return outcome

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """That image of that recording; or the load, if it was the load that failed."""
        if not facts["image"]:
            return self.round(int(facts["seed"]), 1e9, 1, directory)
        result = check_recording(Recording(directory), seed=0, count=1, image=facts["image"])
        outcome = _outcome(result)
        for failure in result.failures:
            what = f"{failure['wrong']}\n{failure['trace']}"
            outcome.failures.append(fail(directory, NAME, what, **_without_what(facts)))
        return outcome


def _outcome(result: Result) -> Outcome:
    tried = Counter({"images": result.images + result.again})
    tried["of them of a recovery"] = result.again
    tried["of them with polyvold"] = result.real
    return Outcome(tried)


def _without_what(facts: dict[str, str]) -> dict[str, str]:
    return {name: fact for name, fact in facts.items() if name not in ("what", "campaign")}
