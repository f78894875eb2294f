"""Growth of log areas: where one more area of a volume lies that has not enough room for its change logs.
Pure.

How it works      An area is added on one of the devices that the log rules allow: on the first one with room
                  for the whole step, else on the one with most room. A step is a quarter of what the volume
                  has, so that growing to a multiple takes few areas, and all that is taken is wanted soon.
Invariants        GL1 the areas that a volume has, with the added one, are not larger than its limit; GL2 an
                  area is added on a device that it may use, and log rules stay as they are.
"""

from collections.abc import Sequence

from polyvol.mapping.extent import Extent, joined
from polyvol.mapping.partition import round_up
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.plans.placement import AREA_SIZE_MIN, CHUNK_SIZE
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule

STEP_SHARE = 4
"""A step is what there is, divided by this."""


def step_size(present: int, limit: int) -> int:
    """How much the log areas of a volume, which have `present` bytes, grow at once; 0 if the limit leaves no
    room for a chunk (GL1)."""
    wanted = max(round_up(present // STEP_SHARE, CHUNK_SIZE), AREA_SIZE_MIN)
    left = max(0, limit - present) // CHUNK_SIZE * CHUNK_SIZE
    return min(wanted, left)


def room_on(devices: Sequence[int], inventory: Inventory) -> dict[int, int]:
    """What is free for a log area on each of these devices that can be used, bytes, by id."""
    known = {device.id: device for device in inventory.devices.values()}
    return {
        number: inventory.space(known[number]).usable(CHUNK_SIZE)
        for number in devices
        if number in known and number not in inventory.unusable and not known[number].adopted
    }


def plan_step(size: int, devices: Sequence[int], inventory: Inventory) -> tuple[Extent, ...]:
    """The extents of one more area of at most `size` bytes on one of these devices (ids, in order); none if
    they have no room."""
    room = room_on(devices, inventory)
    best = next((number for number, free in room.items() if free >= size), None)
    if best is None:
        best = max(room, key=lambda number: room[number], default=None)
    if size <= 0 or best is None or room[best] == 0:
        return ()
    device = next(each for each in inventory.devices.values() if each.id == best)
    return tuple(joined(inventory.space(device).take_some(min(size, room[best]), CHUNK_SIZE)))


def allowed_areas(rules: Sequence[LogRule], areas: Sequence[LogArea]) -> list[list[int]]:
    """The numbers of the areas that each of these log rules in force allows; those for the rest are one list.
    If there are none for the rest, any area is allowed there."""
    every = [area.number for area in areas]
    groups = [rule for rule in rules if not rule.rest]
    rest = [rule for rule in rules if rule.rest]
    named = {device for rule in rest for device in rule.devices}
    found = [[area.number for area in areas if rule.others or area.device in rule.devices] for rule in groups]
    found.append(every if takes_any(rules) else [area.number for area in areas if area.device in named])
    return [numbers for numbers in found if numbers]


def takes_any(rules: Sequence[LogRule]) -> bool:
    """Whether the log rules allow any area for the rest."""
    rest = [rule for rule in rules if rule.rest]
    return not rest or rest[-1].others
