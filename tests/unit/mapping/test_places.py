"""Places: partitions of a new volume lie where they are placed, others as by default, and nothing twice."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.errors import (
    BaseFixesSize,
    DeviceAdopted,
    DeviceTooSmall,
    PolyvolError,
    RepeatedDevice,
    UnknownDevice,
)
from polyvol.mapping.extent import Extent, total
from polyvol.mapping.label import DATA_OFFSET
from polyvol.mapping.partition import partition_lengths
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.plans.places import BadPlace, Place, PlaceDevice, make_place, parse_place
from polyvol.mapping.plans.volumes import VolumePlan, VolumeRequest, plan_volume
from polyvol.mapping.records.devices import Device

MIB = 1 << 20
BLOCK = 4096


def device(identity: int, name: str, room: int, *, adopted: bool = False) -> Device:
    size = room if adopted else DATA_OFFSET + room
    return Device(
        identity,
        uuid4(),
        name,
        f"/{name}",
        "block" if identity % 2 else "file",
        adopted,
        size,
        True,
        None,
        "ready",
        0,
    )


def inventory(*rooms: int, used: Iterable[Extent] = (), processors: int = 2) -> Inventory:
    devices = [device(number, f"d{number}", room) for number, room in enumerate(rooms, 1)]
    devices.append(device(99, "base", 8 * MIB, adopted=True))
    return Inventory(
        {each.name: each for each in devices},
        {},
        lambda identity: [extent for extent in used if extent.device == identity],
        lambda _: [],
        set(),
        {},
        processors,
    )


def plan(there: Inventory, *places: str, size: int = 8 * MIB, **more: object) -> VolumePlan:
    request = VolumeRequest(
        "v",
        None if "base" in more else size,
        MIB,
        places=tuple(parse_place(place) for place in places),
        **more,  # type: ignore[arg-type]
    )
    return plan_volume(request, there)


def on(planned: VolumePlan) -> list[list[tuple[int, int]]]:
    """The devices of each partition, with how much of it is there, MiB."""
    return [
        [(extent.device, extent.length // MIB) for extent in partition.extents]
        for partition in planned.partitions
    ]


def test_a_place_is_read() -> None:
    text = "0-15:processor=1,device=fast+slow:16M"
    found = parse_place(text)
    assert found == Place(text, (0, 15), 1, (PlaceDevice("fast"), PlaceDevice("slow", 16 * MIB)))
    assert make_place((0, 15), 1, ["fast", "slow:16M"]) == found
    assert parse_place("3-3:device=fast").processor is None
    assert parse_place("3-4:processor=0").devices == ()


def test_partitions_are_where_they_are_placed_and_the_others_go_round() -> None:
    there = inventory(64 * MIB, 64 * MIB, 64 * MIB, 80 * MIB)
    planned = plan(
        there,
        "1-2:processor=5,device=d1",
        "6-6:device=d2",
        "7-7:processor=0",
        devices=("d2", "d3"),
        log_devices=("d4",),
    )
    assert on(planned) == [[(each, 1)] for each in (2, 1, 1, 3, 2, 3, 2, 2)]
    assert [part.processor for part in planned.partitions] == [0, 5, 5, 1, 0, 1, 0, 0]
    assert planned.processors == [0, 1, 5]
    assert planned.new_devices == ()


def test_a_partition_lies_on_several_devices_in_their_order() -> None:
    there = inventory(64 * MIB, 3 * MIB // 2, 80 * MIB)
    planned = plan(there, "0-1:device=d3:256K+d1", "2-4:device=d2+d1", size=5 * MIB, log_devices=("d3",))
    extents = [
        [(extent.device, extent.length >> 10) for extent in each.extents] for each in planned.partitions
    ]
    assert extents == [
        [(3, 256), (1, 768)],
        [(3, 256), (1, 768)],
        [(2, 1024)],
        [(2, 512), (1, 512)],
        [(1, 1024)],
    ]


def test_without_devices_each_processor_has_a_file_of_the_size_that_it_needs() -> None:
    planned = plan(inventory(64 * MIB), "0-4:processor=3", "7-7:device=d1")
    assert [part.processor for part in planned.partitions] == [3, 3, 3, 3, 3, 0, 1, 0]
    assert [(each.name, each.size - DATA_OFFSET) for each in planned.new_devices[:3]] == [
        ("v.data-0", MIB),
        ("v.data-1", MIB),
        ("v.data-2", 5 * MIB),
    ]
    names = {each.id: each.name for each in planned.new_devices}
    files = [names.get(part.extents[0].device, "d1") for part in planned.partitions]
    assert files == ["v.data-2"] * 5 + ["v.data-0", "v.data-1", "d1"]
    assert [name for name in names.values() if ".log" in name] == ["v.log-0", "v.log-1", "v.log-2"]


def test_all_partitions_may_be_placed() -> None:
    planned = plan(inventory(64 * MIB, 64 * MIB), "0-7:device=d1", log_devices=("d2",))
    assert on(planned) == [[(1, 1)]] * 8
    assert planned.new_devices == ()


def test_on_a_base_partitions_have_the_processors_that_are_asked_for() -> None:
    planned = plan(inventory(80 * MIB), "2-3:processor=7", base="base", log_devices=("d1",))
    assert [part.processor for part in planned.partitions] == [0, 1, 7, 7, 0, 1, 0, 1]
    assert on(planned) == [[(99, 1)]] * 8
    with pytest.raises(BaseFixesSize, match="device= in --place"):
        plan(inventory(80 * MIB), "2-3:device=d1", base="base")


@st.composite
def places(draw: st.DrawFn, count: int, devices: int) -> list[Place]:
    edges = sorted(draw(st.lists(st.integers(0, count - 1), max_size=6, unique=True)))
    found = []
    for first, last in zip(edges[::2], edges[1::2], strict=False):
        processor = draw(st.one_of(st.none(), st.integers(0, 4)))
        named = draw(st.lists(st.integers(1, devices), max_size=3, unique=True))
        sizes = draw(st.lists(st.sampled_from(["", ":256K", ":512K"]), min_size=3, max_size=3))
        texts = [f"d{number}{size}" for number, size in zip(named, sizes, strict=False)]
        if texts:
            texts[-1] = texts[-1].partition(":")[0]
        if processor is not None or texts:
            found.append(make_place((first, last), processor, texts))
    return found


@given(st.data())
def test_no_byte_is_given_twice_every_partition_is_whole_and_places_are_respected(
    data: st.DataObject,
) -> None:
    blocks, devices = data.draw(st.integers(1, 2500)), data.draw(st.integers(1, 4))
    size = blocks * BLOCK
    lengths = list(partition_lengths(size, MIB))
    rooms = [data.draw(st.integers(1, 16 * 256)) * BLOCK for _ in range(devices)]
    holes = [
        Extent(
            number, DATA_OFFSET + data.draw(st.integers(0, 512)) * BLOCK, data.draw(st.integers(1, 9)) * BLOCK
        )
        for number in range(1, devices + 1)
    ]
    wanted = data.draw(places(len(lengths), devices))
    named = tuple(f"d{number}" for number in data.draw(st.sets(st.integers(1, devices))))
    processors = data.draw(st.one_of(st.none(), st.just((4, 1)), st.integers(1, 3)))
    there = inventory(*rooms, used=holes, processors=3)
    request = VolumeRequest("v", size, MIB, named, processors=processors, places=tuple(wanted))
    planned = None
    with suppress(DeviceTooSmall):
        planned = plan_volume(request, there)
    if planned is None:
        free = sum(there.space(there.devices[name]).free for name in named)
        assert wanted or named, "files to be made have room"
        assert wanted or free < size, "what is free has room"  # PL5
        return
    assert [part.number for part in planned.partitions] == list(range(len(lengths)))
    assert [total(part.extents) for part in planned.partitions] == lengths  # PL2
    taken = [*(extent for part in planned.partitions for extent in part.extents), *holes]
    taken += [extent for area in planned.logs for extent in area.extents]
    taken.sort(key=lambda extent: (extent.device, extent.offset))
    for extent, following in pairwise(taken):  # PL1
        assert extent.device != following.device or extent.end <= following.offset
    for extent in taken:
        if extent.device > 0 and extent not in holes:
            area = there.devices[f"d{extent.device}"].data_area
            assert area.offset <= extent.offset
            assert extent.end <= area.end
    placed = {}
    for place in wanted:
        for number in range(place.partitions[0], place.partitions[1] + 1):
            placed[number] = place
            _as_placed(place, planned.partitions[number].processor, planned.partitions[number].extents)
    free_owners = [
        part.processor
        for part in planned.partitions
        if part.number not in placed or placed[part.number].processor is None
    ]
    shares = [free_owners.count(owner) for owner in set(free_owners)]
    assert not shares or max(shares) - min(shares) <= 1  # PL3
    if processors == (4, 1):
        assert set(free_owners) <= {1, 4}


def _as_placed(place: Place, processor: int, extents: tuple[Extent, ...]) -> None:
    """One partition is where its place says."""
    assert place.processor in (None, processor)
    if not place.devices:
        return
    order = [int(each.name[1:]) for each in place.devices]
    found = [order.index(extent.device) for extent in extents]
    assert found == sorted(found), "in the order of the place"
    left = total(extents)
    for each in place.devices:
        here = total([extent for extent in extents if extent.device == int(each.name[1:])])
        if each.size is not None:
            assert here == min(each.size, left)
        left -= here


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("3-9:processor=1", "place '3-9:processor=1': the last partition of volume v would be 7"),
        ("0-3:processor=1 2-5:device=d1", "the place '0-3:processor=1' is for partitions 2 to 3 already"),
        ("3-2:processor=1", "from 3 to 2 there is no partition; write the lower number first"),
        ("3:processor=1", "it does not begin with a range of partitions; write it as FIRST-LAST:"),
        ("x-y:processor=1", "it does not begin with a range of partitions"),
        ("0-3", "it does not begin with a range of partitions"),
        ("0-3:", "'' is neither processor=P nor device=DEVICE"),
        ("0-3:disk=d1", "'disk=d1' is neither processor=P nor device=DEVICE"),
        ("0-3:processor=x", "'x' is not the number of a processor"),
        ("0-3:processor=256", "256 is not the number of a processor; give a number from 0 to 255"),
        ("0-3:processor=1,processor=2", "it has more than one processor="),
        (
            "0-3:device=d1,device=d2",
            "it has more than one device=; give several devices as device=DEVICE+DEVICE",
        ),
        ("0-3:device=", "the name of a device is missing"),
        ("0-3:device=d1+", "the name of a device is missing"),
        ("0-3:device=d1:0", "0 B is not a size for a part of a partition; give a multiple of 4096"),
        ("0-3:device=d1:100", "100 B is not a size for a part of a partition"),
        ("0-3:device=d1:x+d2", "'x' is not a size; give a size such as 16M"),
        ("0-3:device=d1:1M:2M", "'1M:2M' is not a size; give a size such as 16M"),
        ("0-3:device=d1:256K+d2:512K", "its devices have 768 KiB for a partition of 1 MiB"),
        ("0-3:device=d1+d1", "device d1 is named twice"),
        ("0-3:device=x", "there is no device 'x'"),
        ("0-3:device=base", "device base was adopted with its data"),
        ("0-3:device=d1", "place '0-3:device=d1' of volume v needs 4 MiB, and d1 has 2 MiB free"),
        ("0-3:device=d1:768K+d2", "of volume v needs 4 MiB, and d1, d2 has 66 MiB free"),
    ],
)
def test_a_place_that_cannot_be_is_refused(texts: str, words: str) -> None:
    with pytest.raises(PolyvolError) as refused:
        plan(inventory(2 * MIB, 64 * MIB), *texts.split(" "))
    assert isinstance(
        refused.value, BadPlace | RepeatedDevice | UnknownDevice | DeviceAdopted | DeviceTooSmall
    )
    assert words in str(refused.value)


def test_a_place_names_something() -> None:
    with pytest.raises(BadPlace, match="it names neither a processor nor a device"):
        make_place((0, 1), None, [])
    with pytest.raises(BadPlace, match="from -1 to 1 there is no partition"):
        make_place((-1, 1), 0, [])
