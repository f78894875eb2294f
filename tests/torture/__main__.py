"""torture: runs the campaigns, two at once, until the time is over; says what was tried and what was lost.

How it works      Each of JOBS threads takes the campaign that is furthest behind its share of the time and
                  runs a round of it. Rounds have seeds that follow from the one given, so that `--only NAME
                  --seed S --count N` runs the same draws again. At the end, or at the first failure, a table;
                  evidence is kept in build/torture.
Errors            Exit code 1 when anything was lost: with each, its evidence and the command that tries it
                  again. Exit code 2 for arguments that make no sense.
"""

import argparse
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.torture.calls import CallCampaign
from tests.torture.campaign import Campaign, Failure, Outcome, failed
from tests.torture.damage import DamageCampaign
from tests.torture.faults import FaultCampaign
from tests.torture.fuzzing import FuzzingCampaign
from tests.torture.kills import KillCampaign
from tests.torture.lineage import LineageCampaign
from tests.torture.power_cuts import PowerCutCampaign
from tests.torture.simulator import SimulatorCampaign
from tests.torture.soak import SoakCampaign

JOBS = 2
ROUND_S = 90.0
EVIDENCE = Path(__file__).resolve().parents[2] / "build" / "torture"


def campaigns() -> list[Campaign]:
    """All that there are."""
    polyvolds: list[Campaign] = [KillCampaign(), PowerCutCampaign(), LineageCampaign(), FaultCampaign()]
    beside: list[Campaign] = [SoakCampaign(), CallCampaign(), DamageCampaign()]
    return [*polyvolds, *beside, SimulatorCampaign(), FuzzingCampaign()]


class Torture:
    """What is being tried, and its result."""

    def __init__(self, chosen: Sequence[Campaign], seed: int, evidence: Path) -> None:
        self.tried: dict[str, Counter[str]] = {one.name: Counter() for one in chosen}
        self.seconds: dict[str, float] = {one.name: 0.0 for one in chosen}
        self.failures: list[tuple[str, Failure]] = []
        self._chosen = chosen
        self._seed = seed
        self._evidence = evidence
        self._rounds: Counter[str] = Counter()
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def run(self, seconds: float, count: int | None) -> None:
        """Run for so long, or one round of `count` of each."""
        deadline = time.monotonic() + seconds
        jobs = min(JOBS, len(self._chosen))
        threads = [threading.Thread(target=self._work, args=(deadline, count)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, deadline: float, count: int | None) -> None:
        while not self.failures:
            left = deadline - time.monotonic()
            campaign = self._next(count) if left > 1 else None
            if campaign is None:
                return
            self._round(campaign, min(ROUND_S, left), count)

    def _next(self, count: int | None) -> Campaign | None:
        with self._lock:
            waiting = [one for one in self._chosen if one.name not in self._running]
            if count is not None:
                waiting = [one for one in waiting if not self._rounds[one.name]]
            if not waiting:
                return None
            chosen = min(waiting, key=lambda one: self.seconds[one.name] / one.share)
            self._running.add(chosen.name)
            self._rounds[chosen.name] += 1
            return chosen

    def _round(self, campaign: Campaign, seconds: float, count: int | None) -> None:
        name = campaign.name
        number = self._rounds[name] - 1
        seed = self._seed + number
        directory = self._evidence / f"{name}-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        began = time.monotonic()
        try:
            outcome = campaign.round(seed, seconds if count is None else 1e6, count, directory)
        except Exception as error:
            outcome = Outcome(failures=[Failure(f"the round itself failed: {error}", directory)])
        took = time.monotonic() - began
        with self._lock:
            self._running.discard(name)
            self.tried[name] += outcome.tried
            self.seconds[name] += took
            self.failures += [(name, failure) for failure in outcome.failures]
            if not outcome.failures:
                shutil.rmtree(directory)
            tried = ", ".join(f"{number:,} {what}" for what, number in outcome.tried.items())
            print(f"{name}, seed {seed}: {tried}, lost {len(outcome.failures)}, {took:.0f} s", flush=True)

    def table(self) -> list[str]:
        """What was tried and lost, one line for each campaign."""
        lines = [f"{'campaign':<12} {'tried':>16} {'':<12} {'lost':>5} {'minutes':>8} {'a minute':>12}"]
        for campaign in self._chosen:
            name = campaign.name
            number = self.tried[name][campaign.unit]
            lost = sum(one == name for one, _ in self.failures)
            minutes = self.seconds[name] / 60
            rate = number / minutes if minutes else 0.0
            lines.append(
                f"{name:<12} {number:>16,} {campaign.unit:<12} {lost:>5} {minutes:>8.1f} {rate:>12,.0f}"
            )
            others = [(what, n) for what, n in self.tried[name].items() if what != campaign.unit]
            lines += [f"{'':<12} {n:>16,} {what}" for what, n in others]
        return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    known = campaigns()
    names = [one.name for one in known]
    parser = argparse.ArgumentParser(prog="scripts/torture", description="Torture polyvol.")
    parser.add_argument("--minutes", type=float, help="for how long, all campaigns together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="where chance begins")
    parser.add_argument("--only", action="append", choices=names, help="this campaign; may be repeated")
    parser.add_argument("--count", type=int, help="one round of so many, instead of a time")
    parser.add_argument("--again", type=Path, metavar="DIR", help="try the failure in this directory again")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.again is not None:
        return _again(known, options.again)
    if (options.minutes is None) == (options.count is None):
        parser.error("either --minutes or --count is needed")
    wanted = [one for one in known if options.only is None or one.name in options.only]
    for one in wanted:
        if (why := one.missing()) is not None:
            print(f"{one.name} is left out: {why}")
    torture = Torture([one for one in wanted if one.missing() is None], options.seed, options.evidence)
    print(f"seed {options.seed}", flush=True)
    torture.run(1e9 if options.minutes is None else options.minutes * 60, options.count)
    print(*torture.table(), sep="\n")
    return _told(torture.failures)


def _again(known: Sequence[Campaign], directory: Path) -> int:
    campaign, facts = failed(known, directory)
    outcome = campaign.again(facts, directory)
    if not outcome.failures:
        print("this time nothing was lost")
    return _told([(campaign.name, failure) for failure in outcome.failures])


def _told(failures: Sequence[tuple[str, Failure]]) -> int:
    for name, failure in failures:
        print(f"\nLOST, {name}: {failure.what}\nevidence: {failure.evidence}\nagain: {failure.command}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
