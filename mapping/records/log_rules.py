"""Log rules as the catalog knows them: which log areas the change logs of which partitions may use, in which
order.

How it works      A rule names devices: it allows the volume's log areas on these devices, in this order;
                  areas on one device in the order of their numbers. It is for a range of partitions, for
                  those of one processor, or for the rest. The rules of a volume or snapshot are tried in
                  their order, and the first that matches a partition decides. The rules for the rest are one
                  list, which each processor begins at another place, so that they take turns
                  (mapping/specs.py). A partition that no rule matches may use any area.
Invariants        LR1 the volume has an area on each device that a rule of it names; LR2 a partition is in at
                  most one range, and a processor in at most one rule; LR3 of the rules for the rest, only
                  the last one may end in all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ANY = "any"
"""The word for all other log areas."""


@dataclass(frozen=True, slots=True)
class LogRule:
    """`devices`: ids, in order; `others`: then any other area of the volume. `partitions`: the first and the
    last that it is for; `processor`: it is for this one's; neither: for the rest."""

    devices: tuple[int, ...]
    partitions: tuple[int, int] | None = None
    processor: int | None = None
    others: bool = False

    @property
    def rest(self) -> bool:
        """Whether it is for the partitions that no other rule is for."""
        return self.partitions is None and self.processor is None

    def is_for(self, partition: int, processor: int) -> bool:
        """Whether it is for this partition, which this processor owns."""
        if self.partitions is not None:
            return self.partitions[0] <= partition <= self.partitions[1]
        return self.processor is None or self.processor == processor

    @property
    def selector(self) -> str:
        """Which partitions it is for, as --log-device has it: '0-15=', '2=', or nothing for the rest."""
        if self.partitions is not None:
            return "{}-{}=".format(*self.partitions)
        return "" if self.processor is None else f"{self.processor}="


def from_turn(rules: Sequence[LogRule], turn: int) -> list[LogRule]:
    """These rules, beginning with the one whose turn it is."""
    first = turn % max(1, len(rules))
    return [*rules[first:], *rules[:first]]
