"""Places: on which processor and on which devices the user wants partitions of a new volume. Pure.

How it works      A text of --place is A-B:processor=P,device=DEVICE[:SIZE][+DEVICE[:SIZE]]..., with either or
                  both of processor and device. Each partition of the range gets its extents from the devices
                  in this order: of a device with a SIZE so many bytes, of one without a SIZE what is free
                  there, until the partition is whole. `parse_place` reads a text, `check_places` compares
                  places with the volume.
Errors            BadPlace, RepeatedDevice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.extent import BLOCK_SIZE
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.partition import Range, common_range, shown_range
from polyvol.mapping.plans.placement import PROCESSORS_MAX
from polyvol.mapping.sizes import exact_size, parse_size

FORM = "write it as FIRST-LAST:processor=P,device=DEVICE+DEVICE"
_RANGE = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")


class BadPlace(PolyvolError):
    """A place that cannot be read, or that does not fit its volume."""

    code = "bad-place"
    kind = "invalid"
    sentence = "place {place!r}: {why}"
    hint = "{todo}"


@dataclass(frozen=True, slots=True)
class PlaceDevice:
    """A device by name, and how many bytes of each partition it has (None: what it has room for)."""

    name: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the partitions of a range are wanted. `processor` None, or no `devices`: as without a place.
    `text`: as it was written."""

    text: str
    partitions: Range
    processor: int | None = None
    devices: tuple[PlaceDevice, ...] = ()


def parse_place(text: str) -> Place:
    """The place of a text."""
    numbers, colon, words = text.partition(":")
    match = _RANGE.fullmatch(numbers)
    if match is None or not colon:
        raise BadPlace(place=text, why="it does not begin with a range of partitions", todo=FORM)
    given: dict[str, str] = {}
    for word in words.split(","):
        key, equals, value = word.partition("=")
        if key not in ("processor", "device") or not equals:
            raise BadPlace(place=text, why=f"{word!r} is neither processor=P nor device=DEVICE", todo=FORM)
        if key in given:
            todo = "give several devices as device=DEVICE+DEVICE" if key == "device" else "give one"
            raise BadPlace(place=text, why=f"it has more than one {key}=", todo=todo)
        given[key] = value
    processor = given.get("processor")
    if processor is not None and not re.fullmatch("[0-9]{1,10}", processor):
        raise BadPlace(place=text, why=f"{processor!r} is not the number of a processor", todo=FORM)
    devices = given["device"].split("+") if "device" in given else ()
    first, last = match.groups()
    return make_place((int(first), int(last)), None if processor is None else int(processor), devices, text)


def make_place(
    partitions: Range, processor: int | None, devices: Sequence[str], text: str | None = None
) -> Place:
    """The place of these parts, as it was written or as it would be, if there can be one."""
    if text is None:
        words = [] if processor is None else [f"processor={processor}"]
        words += ["device=" + "+".join(devices)] if devices else []
        text = f"{partitions[0]}-{partitions[1]}:{','.join(words)}"
    if not 0 <= partitions[0] <= partitions[1]:
        why = f"from {partitions[0]} to {partitions[1]} there is no partition"
        raise BadPlace(place=text, why=why, todo="write the lower number first, and count from 0")
    if processor is None and not devices:
        raise BadPlace(place=text, why="it names neither a processor nor a device", todo=FORM)
    if processor is not None and not 0 <= processor < PROCESSORS_MAX:
        why = f"{processor} is not the number of a processor"
        raise BadPlace(place=text, why=why, todo=f"give a number from 0 to {PROCESSORS_MAX - 1}")
    wanted = tuple(_device(text, device) for device in devices)
    refuse_repeats("device", [device.name for device in wanted])
    return Place(text, partitions, processor, wanted)


def check_places(name: str, places: Sequence[Place], lengths: Mapping[int, int]) -> None:
    """BadPlace unless the places fit a volume of this name with partitions of these lengths, and each
    other."""
    for number, place in enumerate(places):
        if place.partitions[1] >= len(lengths):
            why = f"the last partition of volume {name} would be {len(lengths) - 1}"
            raise BadPlace(place=place.text, why=why, todo="give a range within the volume")
        for earlier in places[:number]:
            if overlap := common_range(place.partitions, earlier.partitions):
                why = f"the place {earlier.text!r} is for {shown_range(overlap)} already"
                raise BadPlace(place=place.text, why=why, todo="give each partition one place")
        sizes = [device.size for device in place.devices]
        whole, longest = sum(size for size in sizes if size is not None), lengths[place.partitions[0]]
        if sizes and None not in sizes and whole < longest:
            why = f"its devices have {exact_size(whole)} for a partition of {exact_size(longest)}"
            raise BadPlace(place=place.text, why=why, todo="leave out the size of the last device")


def _device(text: str, word: str) -> PlaceDevice:
    name, colon, size = word.partition(":")
    if not name:
        raise BadPlace(place=text, why="the name of a device is missing in it", todo=FORM)
    if not colon:
        return PlaceDevice(name)
    try:
        wanted = parse_size(size)
    except ValueError as error:
        why = str(error).rpartition(":")[0]
        raise BadPlace(place=text, why=why, todo="give a size such as 16M") from error
    if wanted == 0 or wanted % BLOCK_SIZE:
        why = f"{exact_size(wanted)} is not a size for a part of a partition"
        raise BadPlace(place=text, why=why, todo=f"give a multiple of {BLOCK_SIZE}")
    return PlaceDevice(name, wanted)
