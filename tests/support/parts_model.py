"""parts_model: what partitions, partition snapshots and change logs must be, in memory, for any order of
verbs.

How it works      A map has a token for each block that was redirected; versions share tokens as the
                  engine's maps share slots. A write gets a new token if a snapshot sees the block's place, or
                  the block is in a slot, and is in place if neither. The token is negative if the block goes
                  back to its base place, because no version sees that. So the log that begins with a snapshot
                  is what the versions that come from it have, and it does not have. Blocks are counted as
                  they are written: in whole blocks, and each write for itself.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

BLOCK = 4096
ZERO = 0
"""The token of a block that a rollback to a smaller snapshot has made zero."""


def is_base(token: int | None) -> bool:
    """Whether it is the token of a block at its base place."""
    return token is None or token < 0


@dataclass
class Version:
    """A map, live or a snapshot's: `parent` is the name of the snapshot that it comes from, `counts` what was
    written to each partition until then: writes and bytes."""

    size: int
    parent: str | None = None
    tokens: dict[int, int] = field(default_factory=dict)
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    epoch: int = 0

    def frozen(self, epoch: int) -> "Version":
        """A copy that changes no more."""
        return replace(self, tokens=dict(self.tokens), counts=dict(self.counts), epoch=epoch)


@dataclass
class Volume:
    """A volume with its snapshots by name; `kept` are deleted, and kept for a clone."""

    partition_size: int
    live: Version
    clone: bool = False
    snapshots: dict[str, Version] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    """Targets of rollbacks."""
    written: set[int] = field(default_factory=set)
    """Partitions that were written since the newest cut or rollback."""
    last: int = ZERO

    @property
    def partitions(self) -> range:
        """Their numbers."""
        return range(-(-self.live.size // self.partition_size))

    def write(self, first: int, count: int) -> None:
        """Write whole blocks."""
        for block in range(first, first + count):
            place = self.live.tokens.get(block)
            if (
                (place is None and self.clone)
                or self._is_seen(block, place)
                or (place is not None and place >= 0)
            ):
                self.last += 1
                self.live.tokens[block] = -self.last if self._goes_home(block, place) else self.last
        each = self.partition_size // BLOCK
        for part in range(first // each, (first + count - 1) // each + 1):
            blocks = min(first + count, (part + 1) * each) - max(first, part * each)
            writes, size = self.live.counts.get(part, (0, 0))
            self.live.counts[part] = writes + 1, size + blocks * BLOCK
            self.written.add(part)

    def _is_seen(self, block: int, place: int | None) -> bool:
        return any(
            block * BLOCK < each.size and each.tokens.get(block) == place for each in self.snapshots.values()
        )

    def _goes_home(self, block: int, place: int | None) -> bool:
        """Whether a block that is redirected goes to its base place: no version sees that."""
        versions = (each for each in self.snapshots.values() if block * BLOCK < each.size)
        return not (self.clone or is_base(place) or any(is_base(each.tokens.get(block)) for each in versions))

    def cut(self, name: str, epoch: int) -> None:
        """Take a snapshot."""
        self.snapshots[name] = self.live.frozen(epoch)
        self.live.parent = name
        self.written.clear()

    def delete(self, name: str, *, keep_as: str | None = None) -> None:
        """Delete a snapshot; what comes from it comes from what it comes from."""
        gone = self.snapshots.pop(name)
        if keep_as is not None:
            self.snapshots[keep_as] = gone
            self.kept.add(keep_as)
        parent = gone.parent if keep_as is None else keep_as
        for version in (self.live, *self.snapshots.values()):
            if version.parent == name:
                version.parent = parent

    def roll_back(self, name: str) -> None:
        """Be what a snapshot shows."""
        target, size = self.snapshots[name], self.live.size
        self.live = replace(target.frozen(0), size=size, parent=name)
        for block in range(target.size // BLOCK, size // BLOCK):
            self.live.tokens[block] = ZERO
        self.pinned.add(name)
        self.written.clear()

    def versions(self) -> Iterator[tuple[str | None, Version]]:
        """Each version with its name; the live one last."""
        yield from self.snapshots.items()
        yield None, self.live

    def log(self, begin: str | None, part: int) -> tuple[Counter[int], int, int]:
        """The blocks of a change log (of its partition) in slots, how many became zero, and how many went
        back to their base places."""
        blocks: Counter[int] = Counter()
        zeroes = bases = 0
        parent = {} if begin is None else self.snapshots[begin].tokens
        for _, version in self.versions():
            if version.parent == begin:
                for block, token in self._within(version, part):
                    if parent.get(block) != token:
                        blocks.update([block - part * (self.partition_size // BLOCK)] if token > 0 else [])
                        zeroes += not token
                        # Without a snapshot before, what was always there is not told from what went back.
                        bases += token < 0 and begin is not None
        return blocks, zeroes, bases

    def ended(self, begin: str | None) -> str | None:
        """The snapshot that ended a log; None for one that still grows."""
        ends = [(version.epoch, name) for name, version in self.versions() if version.parent == begin]
        if any(name is None for _, name in ends) or not ends:
            return None
        return max(ends)[1]

    def places(self, version: Version, part: int) -> tuple[int, int, int]:
        """How many blocks of a version's partition are in slots, are zero, and are at their base place."""
        tokens = [token for _, token in self._within(version, part) if not is_base(token)]
        size = min(self.partition_size, version.size - part * self.partition_size) // BLOCK
        zeroes = tokens.count(ZERO)
        return len(tokens) - zeroes, zeroes, size - len(tokens)

    def begin_of(self, version: Version, block: int) -> str | None:
        """The beginning of the log that has a block which a version has in a slot."""
        while version.parent is not None:
            parent = self.snapshots[version.parent]
            if parent.tokens.get(block) != version.tokens[block]:
                break
            version = parent
        return version.parent

    def _within(self, version: Version, part: int) -> Iterator[tuple[int, int]]:
        each = self.partition_size // BLOCK
        for block, token in version.tokens.items():
            if block // each == part and block * BLOCK < version.size:
                yield block, token
