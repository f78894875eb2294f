"""Log rules: as users write them, and as they are for a volume. Pure.

How it works      A text of --log-device is ITEM[,ITEM]..., and there may be several texts. An ITEM is
                  [SELECTOR=]DEVICE[+DEVICE]...[+any]. The SELECTOR is the number of a processor, or a range
                  A-B of partitions; items without one are for the rest, and processors take turns over them.
                  'any' stands for all other log areas of the volume, and may be an item's only word.
                  `parse_rules` reads texts, `bind_rules` compares them with a volume and its devices.
Invariants        As in records/log_rules.py.
Errors            BadLogRule, RepeatedDevice; of `bind_rules` also UnknownDevice, DeviceNotReady,
                  DeviceAdopted.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.partition import Partition, Range, common_range, shown_range
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.records.log_rules import ANY, LogRule, from_turn

_SELECTOR = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


class BadLogRule(PolyvolError):
    """A log rule that cannot be read, or that does not fit its volume."""

    code = "bad-log-rule"
    kind = "invalid"
    sentence = "log rule {rule!r}: {why}"
    hint = "{todo}"


class AreaUnused(PolyvolError):
    """A log area that no log rule of its volume would use."""

    code = "area-unused"
    kind = "invalid"
    sentence = "volume {name} has log rules for all of its partitions, and none would use one more log area"
    hint = "give a device that they name, or name its device by `polyvol volume set {name} --log-device`"


@dataclass(frozen=True, slots=True)
class WantedRule:
    """A rule as it was written (`text`): as LogRule, but with names of devices."""

    text: str
    devices: tuple[str, ...]
    partitions: Range | None
    processor: int | None
    others: bool

    @property
    def rest(self) -> bool:
        """Whether it is for the partitions that no other rule is for."""
        return self.partitions is None and self.processor is None


def parse_rules(texts: Iterable[str]) -> tuple[WantedRule, ...]:
    """The rules of these texts, in their order."""
    rules = tuple(_parse_item(item) for text in texts for item in text.split(","))
    rest = [rule for rule in rules if rule.rest]
    refuse_repeats("log device", [device for rule in rest for device in rule.devices])
    for rule in rest[:-1]:
        if rule.others:
            raise _misplaced(rule.text)
    _refuse_overlap(rules)
    return rules


def bind_rules(
    name: str, wanted: Sequence[WantedRule], partitions: int, owners: Iterable[int], inventory: Inventory
) -> tuple[LogRule, ...]:
    """The rules for the volume of this name, which has so many partitions, owned by these processors: those
    with a range first, then those with a processor, then those for the rest. If 'any' is all that there is
    for the rest, that is no rule."""
    owners = sorted(set(owners))
    bound = []
    for rule in wanted:
        _refuse_foreign(name, rule, partitions, owners)
        if ANY in inventory.devices and rule.others:
            why = f"a device is named {ANY}, which is also the word for all other log areas"
            raise BadLogRule(rule=rule.text, why=why, todo=f"rename it: `polyvol device rename {ANY} NEW`")
        devices = tuple(inventory.storage(device).id for device in rule.devices)
        if devices or not rule.rest or any(each.rest and each.devices for each in wanted):
            bound.append(LogRule(devices, rule.partitions, rule.processor, rule.others))
    return tuple(sorted(bound, key=lambda rule: (rule.partitions is None, rule.processor is None)))


def named_devices(wanted: Iterable[WantedRule]) -> list[str]:
    """The devices that rules name, each once, in order."""
    return list(dict.fromkeys(device for rule in wanted for device in rule.devices))


def written(rule: LogRule, names: dict[int, str]) -> str:
    """A rule as --log-device has it."""
    return rule.selector + "+".join([*(names[device] for device in rule.devices), *[ANY] * rule.others])


def rule_of(
    rules: Sequence[LogRule], partition: int, processor: int, turn: int
) -> tuple[tuple[int, ...], bool]:
    """The devices (ids, in order) that these rules give the change log of a partition of this processor, and
    whether it may then use any other. `turn`: the processor's index among those of the volume."""
    for rule in rules:
        if not rule.rest and rule.is_for(partition, processor):
            return rule.devices, rule.others
    rest = [rule for rule in rules if rule.rest]
    if not rest:
        return (), True
    turns = from_turn([rule for rule in rest if rule.devices], turn)
    return tuple(dict.fromkeys(device for each in turns for device in each.devices)), rest[-1].others


def with_device(rules: Sequence[LogRule], device: int) -> tuple[LogRule, ...]:
    """The rules after a log area was added on a device. If there are rules for the rest, and none of them
    names this device, one more does."""
    rest = [rule for rule in rules if rule.rest]
    if not rest or any(device in rule.devices for rule in rest):
        return tuple(rules)
    last = rest[-1]
    others = [rule for rule in rules if rule is not last]
    if not last.devices:
        return (*others, LogRule((device,)), last)
    return (*others, LogRule(last.devices), LogRule((device,), others=last.others))


def keeping_to(rules: Sequence[LogRule], devices: Sequence[int]) -> tuple[LogRule, ...]:
    """The rules of a volume that has areas on these devices, and gets others for a snapshot. If it has no
    rules for the rest, it gets some: these devices in turns, and then any."""
    if any(rule.rest for rule in rules):
        return tuple(rules)
    own = list(dict.fromkeys(devices))
    return (*rules, *(LogRule((device,), others=device == own[-1]) for device in own))


def refuse_unused(
    name: str,
    rules: Sequence[LogRule],
    partitions: Callable[[], Iterable[Partition]],
    devices: Iterable[int],
) -> None:
    """AreaUnused if no rule of a volume would use an area on one of these devices. `partitions` is called
    only if the answer depends on it."""
    if not rules or any(rule.others or rule.rest for rule in rules):
        return
    named = {device for rule in rules for device in rule.devices}
    if all(device in named for device in devices):
        return
    if all(any(rule.is_for(each.number, each.processor) for rule in rules) for each in partitions()):
        raise AreaUnused(name=name)


def _parse_item(item: str) -> WantedRule:
    before, equals, after = item.partition("=")
    selector, words = (before, after) if equals else ("", before)
    devices = words.split("+")
    if not all(devices):
        todo = "write it as DEVICE, PROCESSOR=DEVICE or FIRST-LAST=DEVICE, with more devices after +"
        raise BadLogRule(rule=item, why="the name of a device is missing in it", todo=todo)
    others = devices[-1] == ANY
    if others:
        devices.pop()
    if ANY in devices:
        raise _misplaced(item)
    refuse_repeats("log device", devices)
    partitions, processor = _parse_selector(item, selector) if equals else (None, None)
    return WantedRule(item, tuple(devices), partitions, processor, others)


def _parse_selector(item: str, selector: str) -> tuple[Range | None, int | None]:
    match = _SELECTOR.fullmatch(selector)
    if match is None:
        why = f"{selector!r} is neither a processor nor a range of partitions"
        raise BadLogRule(rule=item, why=why, todo="write 2= for processor 2, or 0-15= for partitions 0 to 15")
    first, last = match.groups()
    if last is None:
        return None, int(first)
    if int(first) > int(last):
        raise BadLogRule(
            rule=item, why="its range ends before it begins", todo="write the lower number first"
        )
    return (int(first), int(last)), None


def _refuse_overlap(rules: Sequence[WantedRule]) -> None:
    """BadLogRule if two rules are for the same processor, or for the same partition. There may be a rule for
    each of thousands of partitions."""
    of_processor: dict[int, int] = {}
    for number, rule in enumerate(rules):
        if rule.processor is not None:
            earlier = of_processor.setdefault(rule.processor, number)
            if earlier != number:
                raise _repeated(rules[earlier], rule, f"processor {rule.processor}")
    ranges = sorted(
        (rule.partitions, number) for number, rule in enumerate(rules) if rule.partitions is not None
    )
    for (one, number), (other, following) in pairwise(ranges):
        if overlap := common_range(one, other):
            earlier, later = sorted((number, following))
            raise _repeated(rules[earlier], rules[later], shown_range(overlap))


def _repeated(earlier: WantedRule, later: WantedRule, what: str) -> BadLogRule:
    why = f"the rule {earlier.text!r} is for {what} already"
    todo = "give each processor one rule, and each partition one with a range"
    return BadLogRule(rule=later.text, why=why, todo=todo)


def _refuse_foreign(name: str, rule: WantedRule, count: int, owners: Sequence[int]) -> None:
    """BadLogRule if a rule names partitions or a processor that a volume with so many partitions, on these
    processors, does not have."""
    if rule.partitions is not None and rule.partitions[1] >= count:
        why = f"the last partition of volume {name} is {count - 1}"
        raise BadLogRule(rule=rule.text, why=why, todo="give a range within the volume")
    if rule.processor is not None and rule.processor not in owners:
        why = f"processor {rule.processor} owns no partition of volume {name}"
        numbers = ", ".join(str(owner) for owner in owners)
        raise BadLogRule(rule=rule.text, why=why, todo=f"name one that does: {numbers}")


def _misplaced(item: str) -> BadLogRule:
    why = f"{ANY!r} stands for all other log areas, so that nothing can follow it"
    return BadLogRule(rule=item, why=why, todo=f"name {ANY!r} last")
