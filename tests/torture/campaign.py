"""campaign: what all campaigns of a torture have in common.

How it works      A campaign is tried in rounds. A round has a seed, a bound in time and perhaps one in
                  number, and a directory of its own for evidence; it gives an `Outcome`. A failure leaves
                  what is needed to see it again in the directory, the least of it in again.json, and `again`
                  tries exactly that.
Errors            A round raises only when it could not be tried at all.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

AGAIN = "again.json"


@dataclass(frozen=True)
class Failure:
    """What was wrong, the evidence's directory, and the command that tries it again."""

    what: str
    evidence: Path

    @property
    def command(self) -> str:
        """The command that tries it again."""
        return f"scripts/torture --again {self.evidence}"


@dataclass
class Outcome:
    """What was tried, by name (the first is the campaign's own unit), and what was wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


class Campaign(Protocol):
    """One way to torture."""

    name: str
    unit: str
    """What is counted: a key of `Outcome.tried`."""
    share: float
    """Of the whole time, against the others' shares."""

    def missing(self) -> str | None:
        """Why it cannot be run here, if it cannot."""

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        """Try for so long, or so many."""

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        """Retry what `fail` has noted."""


def fail(directory: Path, campaign: str, what: str, **facts: str) -> Failure:
    """Note a failure in its directory."""
    (directory / AGAIN).write_text(json.dumps({"campaign": campaign, "what": what, **facts}, indent=1))
    (directory / "what.txt").write_text(what + "\n")
    return Failure(what, directory)


def failed(campaigns: Sequence[Campaign], directory: Path) -> tuple[Campaign, dict[str, str]]:
    """The campaign and the facts of a failure that was noted."""
    facts: dict[str, str] = json.loads((directory / AGAIN).read_text())
    return next(one for one in campaigns if one.name == facts["campaign"]), facts
