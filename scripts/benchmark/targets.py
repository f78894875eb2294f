"""targets: what polyvol has to reach, and whether it did, row by row.

How it works      A `Ratio` compares two servers' figures of one turn each, in the same round, and takes the
                  median of all; of turns of two cases it compares the medians. A `Bound` is for a figure that
                  stands by itself; those have names such as `cuts.stall_ms.median`. A target whose rows or
                  figure are not there (left out by --quick or --only) is `not measured`. Where fio itself was
                  busy all the time, what it measures is itself: then the same case counts as the generator of
                  the project has measured it, and the verdict says so. Where the limit, measured in the same
                  rounds, does not reach a ratio either, the verdict says so, with how far it came; the target
                  is not met even so.
Errors            none: what is missing is printed, not raised.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.benchmark.cases import (
    LIMIT,
    LIMIT_REDIRECTING,
    NBDKIT,
    POLYVOL,
    POLYVOL_OLDEST,
    POLYVOL_OVERWRITE,
    QCOW2_EXTENDED,
    QCOW2_SNAPSHOT,
    QEMU,
    Case,
    name_of,
    with_snapshots,
)
from scripts.benchmark.load import CLIENT_BUSY_CORES, Sample

Rounds = Mapping[str, Sequence[Sample]]
"""The rounds of one case, by server."""


@dataclass(frozen=True)
class Ratio:
    """`server` has at least (with `at_most`: at most) `bound` times the `figure` of `reference`.

    `case` is the case's name, or its title where two generators have the same one; `other_case`: where the
    reference's rounds are. `limit`: what shows how far one can get, over what; if nothing is named, the limit
    over the reference.
    """

    case: str
    server: str
    reference: str
    bound: float
    figure: str = "iops"
    at_most: bool = False
    other_case: str = ""
    limit: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        """The row's words."""
        figure = {"iops": "", "server_us": " CPU per request"}.get(self.figure, f" {self.figure}")
        reference = f"{self.reference}{f' ({self.other_case})' if self.other_case else ''}"
        return f"{self.case}: {self.server} against {reference}{figure}"


@dataclass(frozen=True)
class Bound:
    """The figure called `key` is at least (with `at_most`: at most) `bound`, in `unit`.

    `limit`: the figure that says what can be reached."""

    title: str
    key: str
    bound: float
    unit: str
    at_most: bool = True
    limit: str = ""


@dataclass(frozen=True)
class Verdict:
    """One row of the table of targets. `measured` is None where it was not; `met` then, too."""

    title: str
    wanted: str
    measured: float | None
    met: bool | None
    remark: str = ""

    @property
    def word(self) -> str:
        """met, not met, or not measured."""
        return {True: "met", False: "NOT MET", None: "not measured"}[self.met]


_READ16 = name_of("randread", 4 << 10, 16)
_READ1 = name_of("randread", 4 << 10, 1)
_WRITE16 = name_of("randwrite", 4 << 10, 16)
_SEQUENTIAL = tuple(name_of(pattern, 128 << 10, 8) for pattern in ("read", "write"))
_MAIN = (_READ16, _READ1, _WRITE16, *_SEQUENTIAL)
_FIRST = "4k first overwrite, depth 16, the main servers"
_FSYNC = "4k random write, fsync after each"


def _ratios() -> list[Ratio]:
    found = [
        Ratio(_READ16, POLYVOL, NBDKIT, 1.6),
        Ratio(_READ16, POLYVOL, NBDKIT, 0.65, "server_us", at_most=True),
        Ratio(_READ16, POLYVOL, QEMU, 3.5),
        Ratio(_READ16, POLYVOL, LIMIT, 0.8),
        Ratio(_READ1, POLYVOL, NBDKIT, 1.0),
        Ratio(_WRITE16, POLYVOL, NBDKIT, 1.3),
        Ratio(_WRITE16, POLYVOL, QEMU, 3.5),
    ]
    for name in _SEQUENTIAL:
        found += [Ratio(name, POLYVOL, NBDKIT, 1.1), Ratio(name, POLYVOL, QEMU, 2.5)]
    many = with_snapshots(1000)
    limit = (LIMIT_REDIRECTING, LIMIT)  # measured beside writes
    found += [Ratio(f"{name}, 1000 snapshots", many, POLYVOL, 0.95, limit=limit) for name in _MAIN]
    found += [
        Ratio(_FIRST, POLYVOL_OVERWRITE, POLYVOL, 0.6),
        Ratio(_FIRST, POLYVOL_OVERWRITE, QCOW2_SNAPSHOT, 10.0),
        Ratio(_FIRST, POLYVOL_OVERWRITE, QCOW2_EXTENDED, 2.5),
        Ratio("4k random read of the oldest of 1000 snapshots, depth 16", POLYVOL_OLDEST, many, 0.9),
        Ratio(_FSYNC, POLYVOL, NBDKIT, 1.0),
    ]
    for pattern in ("randread", "randwrite"):
        for depth in (1, 16, 64):
            name = name_of(pattern, 4 << 10, depth)
            four = name_of(pattern, 4 << 10, depth, 4)
            found.append(Ratio(four, POLYVOL, POLYVOL, 1.0, other_case=name))
    return found


RATIOS = tuple(_ratios())
BOUNDS = (
    Bound("with redirection, syncs for each fsync over those in place", "syncs.ratio", 2.0, "x"),
    Bound(
        "O_DIRECT, 4k random read, depth 32, cold, over fio on the file",
        "direct.ratio",
        0.9,
        "x",
        at_most=False,
        limit="direct.limit_ratio",
    ),
    Bound("cut under 4k random writes, depth 32, 1 TiB: median stall", "cuts.stall_ms.median", 0.2, "ms"),
    Bound("the same, 99 of 100 cuts", "cuts.stall_ms.p99", 1.0, "ms"),
    Bound("cuts a second, sustained", "cuts.per_second", 100.0, "/s", at_most=False),
    Bound("TRIM of 1 TiB, half of it redirected", "trim.seconds", 2.0, "s"),
    Bound("reads by others meanwhile: the longest", "trim.longest_read_ms", 1000.0, "ms"),
    Bound("bytes written for each byte of first overwrites", "amplification.overwrite", 1.05, "x"),
    Bound("blocks come home, idle hosts, over cp and sync", "relocation.home_share", 0.5, "x", at_most=False),
    Bound(
        "128k reads in order with snapshots, after relocation, over those before",
        "relocation.read_share",
        0.8,
        "x",
        at_most=False,
    ),
    Bound(
        "4k mix, depth 16, while blocks come home, over without",
        "relocation.hosts_iops_share",
        0.9,
        "x",
        at_most=False,
    ),
    Bound("the same, 99 of 100 requests", "relocation.hosts_p99_share", 1.3, "x"),
    Bound(
        "4k mix at 70 % of its full rate, while blocks come home, over without",
        "relocation.slower_hosts_iops_share",
        0.9,
        "x",
        at_most=False,
    ),
    Bound("the same, 99 of 100 reads", "relocation.slower_hosts_p99_share", 1.3, "x"),
    Bound("idle: wake-ups of the engine's threads", "idle.engine_wakeups", 0.0, "in all"),
    Bound("idle: resident memory", "idle.resident_mib", 80.0, "MiB"),
)


def ratio_of(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str = "iops") -> float:
    """The median over the rounds of one figure over another's of the same round; infinite over nothing."""
    pairs = zip(ours, theirs, strict=True)
    quotients = [
        getattr(our, figure) / getattr(their, figure) if getattr(their, figure) else float("inf")
        for our, their in pairs
    ]
    return float(statistics.median(quotients))


def _ratio_of_medians(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str) -> float:
    """Of turns of two cases, which may be more in one than in the other."""
    our, their = (
        statistics.median(getattr(sample, figure) for sample in samples) for samples in (ours, theirs)
    )
    return our / their if their else float("inf")


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that such a share of them does not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(0, rank - 1)]


def verdicts(rows: Sequence[tuple[Case, Rounds]], figures: Mapping[str, float]) -> list[Verdict]:
    """Every target, in order, with its result."""
    return [_of_ratio(target, rows) for target in RATIOS] + [_of_bound(target, figures) for target in BOUNDS]


def _rounds(rows: Sequence[tuple[Case, Rounds]], name: str) -> tuple[Case | None, Rounds]:
    return next(((case, rounds) for case, rounds in rows if name in (case.name, case.title)), (None, {}))


def is_busy(samples: Sequence[Sample]) -> bool:
    """Whether the load generator may be what bounds the rate."""
    return statistics.median(sample.client_cores for sample in samples) >= CLIENT_BUSY_CORES


def _instead(target: Ratio, rows: Sequence[tuple[Case, Rounds]]) -> tuple[Rounds, str]:
    """The rounds that count, and why, if they are not those of the target's case."""
    case, rounds = _rounds(rows, target.case)
    pair = (target.server, target.reference)
    if case is None or case.generator != "fio" or target.other_case or not all(map(rounds.get, pair)):
        return rounds, ""
    twins = (rounds for other, rounds in rows if other.name == case.name and other.generator == "load")
    twin = next((rounds for rounds in twins if all(map(rounds.get, pair))), None)
    if twin is None or not any(is_busy(rounds[name]) for name in pair):
        return rounds, ""
    by_fio = ratio_of(rounds[target.server], rounds[target.reference], target.figure)
    return twin, f"by load.rs; fio, itself busy, has {by_fio:.2f}"


def _beyond(reached: float) -> str:
    return f"beyond the limit, which has {reached:.2f}"


def _of_ratio(target: Ratio, rows: Sequence[tuple[Case, Rounds]]) -> Verdict:
    wanted = f"{'<=' if target.at_most else '>='} {target.bound:g}"
    rounds, remark = _instead(target, rows)
    others = _rounds(rows, target.other_case)[1] if target.other_case else rounds
    ours, theirs = rounds.get(target.server), others.get(target.reference)
    if not ours or not theirs:
        return Verdict(target.title, wanted, None, None)
    measured = (_ratio_of_medians if target.other_case else ratio_of)(ours, theirs, target.figure)
    met = measured <= target.bound if target.at_most else measured >= target.bound
    remarks = [remark] if remark else []
    limit, over = (rounds.get(name) for name in target.limit or (LIMIT, target.reference))
    if not met and limit and over and target.reference != LIMIT and not target.other_case:
        reached = ratio_of(limit, over, target.figure)
        beyond = reached > target.bound if target.at_most else reached < target.bound
        remarks += [_beyond(reached)] if beyond else []
    return Verdict(target.title, wanted, measured, met, "; ".join(remarks))


def _of_bound(target: Bound, figures: Mapping[str, float]) -> Verdict:
    wanted = f"{'<=' if target.at_most else '>='} {target.bound:g} {target.unit}"
    measured = figures.get(target.key)
    if measured is None:
        return Verdict(target.title, wanted, None, None)
    met = measured <= target.bound if target.at_most else measured >= target.bound
    limit = figures.get(target.limit)
    if met or limit is None or (limit < target.bound) == target.at_most:
        return Verdict(target.title, wanted, measured, met)
    return Verdict(target.title, wanted, measured, met, _beyond(limit))


def fails(found: Sequence[Verdict], *, complete: bool) -> bool:
    """Whether --check ends with 1: a target was missed or, in a complete run, not measured."""
    return any(verdict.met is False or (complete and verdict.met is None) for verdict in found)
