"""What `polyvol check` says where processors' records of cuts differ from the catalog."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polyvol.daemon.partitions.records import record_problems, share_problems
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.partition import Partition
from tests.support.catalogs import PLAN, snapshot

if TYPE_CHECKING:
    from polyvol.engine import RecordedCuts

SNAPSHOTS = [snapshot(1, "a", 1), snapshot(1, "b", 2)]


def recorded(processor: int, cuts: Mapping[int, int], since: int = 0) -> "RecordedCuts":
    """What a processor says: by epoch, how many partitions it had."""
    found = [
        {"epoch": epoch, "instant_ns": 1, "partitions": partitions} for epoch, partitions in cuts.items()
    ]
    return {"processor": processor, "recorded_from": since, "cuts": found}  # type: ignore[typeddict-item]


def problems(shares: Mapping[int, Mapping[int, int]], *found: "RecordedCuts") -> Sequence[str]:
    snapshots = [
        replace(each, shares=tuple(sorted(shares.get(each.epoch, {}).items()))) for each in SNAPSHOTS
    ]
    return list(record_problems(snapshots, found))


def test_records_that_agree_are_no_problem() -> None:
    shares = {1: {0: 4}, 2: {0: 4, 1: 3}}
    assert problems(shares, recorded(0, {1: 4, 2: 4}), recorded(1, {2: 3})) == []


def test_another_number_of_partitions_is_a_problem() -> None:
    assert problems({1: {0: 4}, 2: {0: 4}}, recorded(0, {1: 4, 2: 1})) == [
        "processor 0 held 1 partition of snapshot b by its records, and 4 by the catalog"
    ]
    assert problems({1: {0: 4}, 2: {0: 4}}, recorded(0, {1: 4, 2: 4}), recorded(1, {1: 2})) == [
        "processor 1 held 2 partitions of snapshot a by its records, and 0 by the catalog"
    ]


def test_a_record_that_is_missing_is_a_problem() -> None:
    assert problems({1: {0: 1}, 2: {0: 1}}, recorded(0, {2: 1})) == [
        "processor 0 has no record of snapshot a, of which it held 1 partition by the catalog"
    ]


def test_what_older_versions_did_not_record_is_not_compared() -> None:
    assert problems({1: {0: 4}, 2: {0: 4}}, recorded(0, {1: 0, 2: 4})) == []
    assert problems({1: {0: 4}, 2: {0: 4}}, recorded(0, {2: 4}, since=2)) == []
    assert problems({2: {0: 4}}, recorded(0, {1: 9, 2: 4})) == []
    assert problems({1: {0: 4}, 2: {0: 4}}) == []


def test_the_catalog_agrees_with_its_own_partitions(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    partitions = [Partition(0, 0, ()), Partition(1, 1, ()), Partition(2, 1, ())]
    size = volume.partition_size
    first, second = (
        replace(each, size=blocks * size, shares=shares)
        for each, blocks, shares in zip(SNAPSHOTS, (2, 3), (((0, 1), (1, 1)), ((0, 1), (1, 2))), strict=True)
    )
    unknown = replace(first, shares=())
    assert list(share_problems(volume, [first, second, unknown], partitions)) == []
    wrong = replace(second, shares=((0, 2), (1, 1)))
    assert list(share_problems(volume, [first, wrong], partitions)) == [
        "the catalog's numbers of partitions by processor are wrong for snapshot b"
    ]
