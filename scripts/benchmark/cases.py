"""cases: what is measured. A new row of the table is a new entry here.

How it works      A case is one load, put on each of its servers in turn, several rounds. `contenders.py`
                  knows the servers. A target is a share of another server's rate that polyvol has to reach.
"""

from dataclasses import dataclass
from typing import Literal

Pattern = Literal["randread", "randwrite", "read", "write"]
Generator = Literal["fio", "load"]

POLYVOL = "polyvol"
POLYVOL_SNAPSHOTS = "polyvol, 100 snapshots"
POLYVOL_OVERWRITE = "polyvol, after a cut"
NBDKIT = "nbdkit file"
QEMU = "qemu-nbd raw"
LIMIT = "the limit"
REFERENCES = (NBDKIT, QEMU, LIMIT)
PLAIN = (POLYVOL, *REFERENCES)


@dataclass(frozen=True)
class Target:
    """`server` has to reach `share` times the figure of `reference`."""

    server: str
    reference: str
    share: float


@dataclass(frozen=True)
class Case:
    """One load on several servers. `block` is bytes; `quick`: part of `--quick` too. A random write case uses
    no block twice, so that on `polyvol, after a cut` each write is the first after the cut."""

    name: str
    pattern: Pattern
    block: int
    depth: int
    servers: tuple[str, ...] = PLAIN
    generator: Generator = "fio"
    connections: int = 1
    quick: bool = True
    targets: tuple[Target, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it changes what the servers serve."""
        return self.pattern.endswith("write")

    @property
    def random(self) -> bool:
        """Whether blocks come in random order."""
        return self.pattern.startswith("rand")


_READERS = (POLYVOL, POLYVOL_SNAPSHOTS, *REFERENCES)
_WRITERS = (POLYVOL, POLYVOL_OVERWRITE, *REFERENCES)
_ON_A_PAR = (Target(POLYVOL, NBDKIT, 1.0), Target(POLYVOL_SNAPSHOTS, NBDKIT, 1.0))
_4K = 4 << 10
_128K = 128 << 10

# Reads come before writes: up to then every block of the plain volume is at its base place.
CASES = (
    Case("4k random read, depth 16", "randread", _4K, 16, _READERS, targets=_ON_A_PAR),
    Case("4k random read, depth 16", "randread", _4K, 16, _READERS, generator="load"),
    Case("4k random read, depth 1", "randread", _4K, 1, _READERS),
    Case("4k random read, depth 64", "randread", _4K, 64, _READERS, generator="load", quick=False),
    Case(
        "4k random read, depth 16, 4 connections",
        "randread",
        _4K,
        16,
        _READERS,
        generator="load",
        connections=4,
        quick=False,
    ),
    Case("128k sequential read, depth 8", "read", _128K, 8),
    Case("4k random write, depth 16", "randwrite", _4K, 16, _WRITERS),
    Case("4k random write, depth 16", "randwrite", _4K, 16, _WRITERS, generator="load", quick=False),
    Case("4k random write, depth 1", "randwrite", _4K, 1, _WRITERS, quick=False),
    Case("128k sequential write, depth 8", "write", _128K, 8),
)

CUT_STALL_MS_MAX = 10.0
"""The target of the cut case: the median of the write stalls that the engine reports."""
