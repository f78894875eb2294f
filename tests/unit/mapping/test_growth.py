"""Growth: what is added where, and that what there is stays."""

from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.errors import DeviceTooSmall, NotLarger, RepeatedDevice, UnalignedSize
from polyvol.mapping.extent import Extent, total
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.partition import Partition, partition_lengths
from polyvol.mapping.plans.growth import GrowthPlan, plan_growth
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import Volume

MIB = 1 << 20


def volume(size: int) -> Volume:
    return Volume(VolumeId(1), uuid4(), "v", size, MIB, "ready", "keep-writing", Epoch(1), 2, 0)


def partitions(size: int, processors: int) -> list[Partition]:
    return [
        Partition(number, number % processors, (Extent(1, (number + 1) * MIB, length),))
        for number, length in enumerate(partition_lengths(size, MIB))
    ]


def inventory(processors: int, load: dict[int, int] | None = None, room: int = 0) -> Inventory:
    devices = {
        name: Device(identity, uuid4(), name, f"/{name}", "file", False, room, True, None, "ready", 0)
        for identity, name in ((7, "x"), (8, "y"))
        if room
    }
    return Inventory(
        devices=devices,
        unusable={},
        used=lambda _: [],
        volumes_on=lambda _: [],
        volume_names={"v"},
        load=load or {},
        processors=processors,
    )


def grow(size: int, wanted: int, had: int, there: int, *devices: str, room: int = 0) -> GrowthPlan:
    return plan_growth(volume(size), partitions(size, had), wanted, devices, inventory(there, room=room))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 4), st.integers(1, 6))
def test_what_is_added_is_what_is_missing(blocks: int, more: int, had: int, there: int) -> None:
    size, wanted = blocks * 4096, (blocks + more) * 4096
    plan = grow(size, wanted, had, max(had, there))
    lengths = list(partition_lengths(wanted, MIB))
    before = {partition.number: total(partition.extents) for partition in partitions(size, had)}
    added = {partition.number: total(partition.extents) for partition in plan.partitions}
    assert [before.get(number, 0) + added.get(number, 0) for number in range(len(lengths))] == lengths
    rooms = {new.id: new.size for new in plan.new_devices}
    for partition in plan.partitions:
        for extent in partition.extents:
            assert 0 < extent.offset < extent.end <= rooms[extent.device]


def test_a_short_last_partition_gets_longer_on_its_own_processor() -> None:
    plan = grow(MIB + 4096, 2 * MIB, 2, 4)
    [partition] = plan.partitions
    assert (partition.number, partition.processor, total(partition.extents)) == (1, 1, MIB - 4096)
    assert [new.name for new in plan.new_devices] == ["v.data"]


def test_new_partitions_go_round_the_processors_that_it_has() -> None:
    plan = grow(4 * MIB, 8 * MIB, 2, 4)
    assert [partition.processor for partition in plan.partitions] == [0, 1, 0, 1]
    assert len(plan.new_devices) == 2


def test_a_volume_of_one_partition_takes_all_processors() -> None:
    plan = grow(MIB, 4 * MIB, 1, 4)
    assert sorted(partition.processor for partition in plan.partitions) == [1, 2, 3]


def test_named_devices_take_turns() -> None:
    plan = grow(MIB, 5 * MIB, 1, 1, "x", "y", room=4 * MIB)
    assert [partition.extents[0].device for partition in plan.partitions] == [7, 8, 7, 8]
    assert plan.new_devices == ()


def test_plans_that_are_impossible_are_refused() -> None:
    for wanted in (MIB, 4096):
        with pytest.raises(NotLarger, match="is not more"):
            grow(MIB, wanted, 1, 1)
    with pytest.raises(UnalignedSize):
        grow(MIB, 2 * MIB + 1, 1, 1)
    with pytest.raises(RepeatedDevice):
        grow(MIB, 2 * MIB, 1, 1, "x", "x", room=MIB)
    with pytest.raises(DeviceTooSmall, match="volume v needs 9 MiB"):
        grow(MIB, 10 * MIB, 1, 1, "x", room=4 * MIB)
