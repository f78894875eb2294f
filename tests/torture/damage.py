"""damage: things damaged, missing, older or swapped in a state directory; see tests/crash/damage.py."""

from collections import Counter
from pathlib import Path

from tests.crash.damage import Result, run_damage
from tests.torture.campaign import Outcome, fail

NAME = "damage"
TRIALS = 10_000
"""Of one state, at most: the time ends it."""


class DamageCampaign:
    """A state, then trials of it."""

    name = NAME
    unit = "trials"
    share = 0.05

    def missing(self) -> str | None:
        return None

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        result = run_damage(
            seed=seed, count=count or TRIALS, seconds=min(seconds, 500), images=directory / "images"
        )
        return _outcome(result, seed, directory)

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """That trial of that state."""
        seed, trial = int(facts["seed"]), int(facts["trial"])
        result = run_damage(seed=seed, count=1, images=directory / "images", trial=trial)
        return _outcome(result, seed, directory)


def _outcome(result: Result, seed: int, directory: Path) -> Outcome:
    outcome = Outcome(Counter(trials=result.trials))
    for each in result.outcomes.values():
        outcome.tried.update(each)
    for failure in result.failures:
        (directory / "trace.txt").write_text(failure["trace"])
        outcome.failures.append(
            fail(directory, NAME, failure["wrong"], seed=str(seed), trial=failure["trial"])
        )
    return outcome
