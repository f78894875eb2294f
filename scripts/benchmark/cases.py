"""cases: what is measured. A new row of the table is a new entry here.

How it works      A case is one load, put on each of its servers in turn, several rounds. `contenders.py`
                  knows the servers, `targets.py` what polyvol has to reach.
"""

from dataclasses import dataclass
from typing import Literal

Pattern = Literal["randread", "randwrite", "read", "write", "randrw"]
Generator = Literal["fio", "load"]
Place = Literal["read", "write", "durable"]

POLYVOL = "polyvol"
POLYVOL_NBDKIT = "polyvol in nbdkit"
POLYVOL_OVERWRITE = "polyvol, after a cut"
POLYVOL_OLDEST = "polyvol, oldest of 1000"
POLYVOL_WRITTEN = "polyvol, snapshot of a written volume"
NBDKIT = "nbdkit file"
NBDKIT_COW = "nbdkit cow"
QEMU = "qemu-nbd raw"
QCOW2 = "qcow2"
QCOW2_SNAPSHOT = "qcow2, after a snapshot"
QCOW2_BACKING = "qcow2 overlay"
QCOW2_EXTENDED = "qcow2 overlay, extended_l2"
NBD_SERVER = "nbd-server"
LIMIT = "the limit"
LIMIT_REDIRECTING = "the limit, redirecting"
REFERENCES = (NBDKIT, QEMU, LIMIT)
PLAIN = (POLYVOL, *REFERENCES)
EVERYBODY = (
    POLYVOL,
    POLYVOL_NBDKIT,
    NBDKIT,
    NBDKIT_COW,
    QEMU,
    QCOW2,
    QCOW2_BACKING,
    QCOW2_EXTENDED,
    NBD_SERVER,
    LIMIT,
)
SNAPSHOT_COUNTS = (1, 10, 100, 1000)
REGION_BYTES = 256 << 20
DATA_BYTES = 1 << 30
"""What each contender serves."""
FIRST_OVERWRITES = DATA_BYTES // (64 << 10)
"""How many are a turn: with more, most would go to clusters of qcow2 (64 KiB) that were copied for others."""
SHORT_TURNS = 3
"""Turns in a round where there is a target: what disturbs this machine disturbs whole turns."""


def with_snapshots(count: int) -> str:
    """The name of polyvol's volume while it has so many snapshots."""
    return f"polyvol, {count} snapshot{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Case:
    """One load on several servers. `block` is bytes; `fsync`: a FLUSH after so many writes, 0: none.

    `quick`: part of `--quick` too. `snapshots`: so many are on the volume with snapshots. `region`: only the
    first so many bytes are used, again and again, and were written since the last snapshot; else a random
    write uses no block twice, so that on servers "after" something each write is the first. `requests`: a
    turn ends after so many, if not before. `rate`: fio sends so many in a second; 0: as many as it can.
    `turns`: in a full run each server has so many in a round, by turns with the others; if several, they are
    shorter.
    """

    name: str
    pattern: Pattern
    block: int
    depth: int
    servers: tuple[str, ...] = PLAIN
    generator: Generator = "fio"
    connections: int = 1
    quick: bool = True
    fsync: int = 0
    snapshots: int = 0
    region: int = 0
    requests: int = 0
    rate: int = 0
    turns: int = 1

    @property
    def writes(self) -> bool:
        """Whether it changes what the servers serve."""
        return self.pattern.endswith(("write", "rw"))

    @property
    def random(self) -> bool:
        """Whether blocks come in random order."""
        return self.pattern.startswith("rand")

    @property
    def place(self) -> Place:
        """Where its files are: reads and what is synced on a disk's file system, writes in memory."""
        if not self.writes:
            return "read"
        return "durable" if self.fsync else "write"

    @property
    def title(self) -> str:
        """Its name and generator: no two cases have the same."""
        return f"{self.name}, by {self.generator}"


_4K = 4 << 10
_128K = 128 << 10
_1M = 1 << 20
_WORDS = {"randread": "random read", "randwrite": "random write", "read": "sequential read"} | {
    "write": "sequential write",
    "randrw": "random 70/30 mix",
}
_REDIRECTING = (LIMIT, LIMIT_REDIRECTING)
_OVERWRITERS = (*PLAIN, POLYVOL_OVERWRITE, QCOW2_SNAPSHOT, QCOW2_BACKING, QCOW2_EXTENDED, NBDKIT_COW)
_QUICK_OVERWRITERS = (POLYVOL, POLYVOL_OVERWRITE, QCOW2_SNAPSHOT, QCOW2_EXTENDED)


def name_of(pattern: Pattern, block: int, depth: int, connections: int = 1) -> str:
    """What a case of this load is called."""
    size = f"{block >> 20}M" if block >= _1M else f"{block >> 10}k"
    several = f", {connections} connections" if connections > 1 else ""
    return f"{size} {_WORDS[pattern]}, depth {depth}{several}"


def _case(
    pattern: Pattern, block: int, depth: int, servers: tuple[str, ...] = PLAIN, *, connections: int = 1
) -> Case:
    quick = connections == 1 and depth < 64 and block < _1M and not (pattern == "randwrite" and depth == 1)
    name = name_of(pattern, block, depth, connections)
    # fio is one thread for each connection, and the project's own generator too, at less CPU.
    generator: Generator = "load" if connections > 1 or depth > 16 else "fio"
    aimed = quick or (block == _4K and connections != 2)  # there are targets for these
    turns = SHORT_TURNS if aimed else 1
    return Case(name, pattern, block, depth, servers, generator, connections, quick, turns=turns)


def _matrix() -> list[Case]:
    found = []
    patterns: tuple[Pattern, Pattern] = ("randread", "randwrite")
    for pattern in patterns:
        for depth in (1, 16, 64):
            found += [_case(pattern, _4K, depth, connections=count) for count in (1, 2, 4)]
        found.append(_everybody(pattern))
        found.append(_twin(pattern))
    return found


def _everybody(pattern: Pattern) -> Case:
    name = f"{name_of(pattern, _4K, 16)}, all servers"
    return Case(name, pattern, _4K, 16, EVERYBODY, quick=False)


def _twin(pattern: Pattern) -> Case:
    return Case(name_of(pattern, _4K, 16), pattern, _4K, 16, generator="load", turns=SHORT_TURNS)


def _sequential() -> list[Case]:
    patterns: tuple[Pattern, Pattern] = ("read", "write")
    return [_case(pattern, block, 8) for block in (_128K, _1M) for pattern in patterns]


def _counted(count: int) -> list[Case]:
    name = with_snapshots(count)
    aimed = count == SNAPSHOT_COUNTS[-1]  # there are targets for it
    loads: list[tuple[Pattern, int, int]] = [("randread", _4K, 16), ("randwrite", _4K, 16)]
    if aimed:
        loads += [("randread", _4K, 1), ("read", _128K, 8), ("write", _128K, 8)]
    word = f"{count} snapshot{'s' if count > 1 else ''}"
    return [
        Case(
            f"{name_of(pattern, block, depth)}, {word}",
            pattern,
            block,
            depth,
            (POLYVOL, name, *(_REDIRECTING if aimed and pattern.endswith("write") else ())),
            quick=count == 100 and pattern == "randread",
            snapshots=count,
            region=REGION_BYTES,
            turns=SHORT_TURNS if aimed else 1,
        )
        for pattern, block, depth in loads
    ]


def _first_overwrites(name: str, servers: tuple[str, ...], *, quick: bool) -> Case:
    return Case(
        name,
        "randwrite",
        _4K,
        16,
        servers,
        "load",
        quick=quick,
        requests=FIRST_OVERWRITES,
        turns=SHORT_TURNS,
    )


def _all() -> tuple[Case, ...]:
    found = [*_matrix(), *_sequential()]
    found.append(Case(name_of("randrw", _4K, 16), "randrw", _4K, 16, quick=False))
    for fsync, word in ((1, "each"), (32, "each 32")):
        servers = (POLYVOL, POLYVOL_OVERWRITE, NBDKIT, QEMU, LIMIT)
        name = f"4k random write, fsync after {word}"
        turns = SHORT_TURNS if fsync == 1 else 1
        found.append(
            Case(name, "randwrite", _4K, 1, servers, quick=fsync == 1, fsync=fsync, turns=turns),
        )
    for count in SNAPSHOT_COUNTS:
        found += _counted(count)
    found += [
        _first_overwrites("4k first overwrite, depth 16", _OVERWRITERS, quick=False),
        _first_overwrites("4k first overwrite, depth 16, the main servers", _QUICK_OVERWRITERS, quick=True),
    ]
    name = "4k random read of the oldest of 1000 snapshots, depth 16"
    pair = (with_snapshots(1000), POLYVOL_OLDEST)
    found.append(Case(name, "randread", _4K, 16, pair, quick=False, snapshots=1000, turns=SHORT_TURNS))
    name = "4k random read of a snapshot while its volume is written, depth 16"
    pair = (POLYVOL, POLYVOL_WRITTEN)
    found.append(Case(name, "randread", _4K, 16, pair, quick=False, snapshots=1000))
    return tuple(found)


CASES = _all()
"""Those with few snapshots come before those with many: a volume only gains them."""
