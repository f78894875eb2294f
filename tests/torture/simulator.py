"""simulator: seeds for the engine's simulator (engine/examples/simulate.rs); a seed is a whole run."""

import re
from collections import Counter
from pathlib import Path

from tests.support.proc import Result, check, run
from tests.torture.campaign import Outcome, fail

NAME = "simulator"
ENGINE = Path(__file__).resolve().parents[2] / "engine"
SOURCE = ENGINE / "examples" / "simulate.rs"
FEATURES = ("--no-default-features", "--features", "simulator")
BUILD = ("cargo", "build", "--release", "--locked", *FEATURES, "--example", "simulate")
PROGRAM = ENGINE / "target" / "release" / "examples" / "simulate"
SEEDS_A_ROUND = 1_000_000


class SimulatorCampaign:
    """Seeds in order, each round from a million on."""

    name = NAME
    unit = "seeds"
    share = 0.34
    _built = False

    def missing(self) -> str | None:
        return None if SOURCE.exists() else f"there is no {SOURCE.name}"

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        first = seed * SEEDS_A_ROUND
        seeds = f"{first}..{first + (count or SEEDS_A_ROUND)}"
        bounds = [] if count else ["--minutes", str(seconds / 60)]
        return self._run(["--seeds", seeds, *bounds], seconds + 300, directory)

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        return self._run(["--seeds", facts["seeds"], "--trace"], 600, directory)

    def _run(self, arguments: list[str], timeout_s: float, directory: Path) -> Outcome:
        if not self._built:
            check(*BUILD, cwd=ENGINE, timeout_s=1800, env={"CARGO_TARGET_DIR": str(ENGINE / "target")})
            self._built = True
        return _outcome(run(PROGRAM, *arguments, timeout_s=timeout_s), directory)


def _outcome(ended: Result, directory: Path) -> Outcome:
    told = re.search(r"^seeds (\d+) failures (\d+)$", ended.out, re.MULTILINE)
    outcome = Outcome(Counter({"seeds": int(told[1]) if told else 0}))
    if ended.rc != 0 or told is None or int(told[2]):
        (directory / "output.txt").write_text(ended.out + ended.err)
        bad = re.search(r"^seed (\d+):", ended.out, re.MULTILINE)
        seeds = f"{bad[1]}..{int(bad[1]) + 1}" if bad else "0..1"
        outcome.failures.append(fail(directory, NAME, (ended.out + ended.err)[-2000:], seeds=seeds))
    return outcome
