"""Log rules: what is refused, and which areas a partition's change logs may use by them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.errors import DeviceAdopted, PolyvolError, RepeatedDevice, UnknownDevice
from polyvol.mapping.extent import Extent
from polyvol.mapping.partition import Partition, Range, common_range
from polyvol.mapping.plans import log_rules
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.plans.log_rules import (
    AreaUnused,
    BadLogRule,
    bind_rules,
    keeping_to,
    named_devices,
    parse_rules,
    refuse_unused,
    with_device,
    written,
)
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.specs import rule_specs

if TYPE_CHECKING:
    from polyvol.engine import LogRule as LogRuleSpec

MIB = 1 << 20
NAMES = {1: "a", 2: "b", 3: "c", 4: "d"}
AREAS = [LogArea(number, (Extent(device, 0, 64 * MIB),)) for number, device in enumerate((1, 2, 3, 1, 4), 1)]
"""Areas 1 and 4 are on device a, 2 on b, 3 on c, 5 on d."""


def inventory(*more: str, adopted: str = "") -> Inventory:
    devices = {
        name: Device(
            identity, uuid4(), name, f"/{name}", "file", name == adopted, MIB, True, None, "ready", 0
        )
        for identity, name in [*NAMES.items(), *enumerate(more, 9)]
    }
    return Inventory(devices, {}, lambda _: [], lambda _: [], set(), {}, 2)


def partitions(owners: Sequence[int]) -> list[Partition]:
    return [Partition(number, owner, ()) for number, owner in enumerate(owners)]


def rules(*texts: str, owners: Sequence[int] = (0, 1, 2, 0, 1, 2)) -> tuple[LogRule, ...]:
    return bind_rules("v", parse_rules(texts), len(owners), owners, inventory())


def areas_of(specs: "Sequence[LogRuleSpec]", partition: Partition) -> tuple[list[int], bool]:
    """What the first rule that is for a partition lets its change logs use."""
    for spec in specs:
        first, last = spec["partitions"] or (0, 1 << 30)
        if not first <= partition.number <= last:
            continue
        if spec["processors"] is None or partition.processor in spec["processors"]:
            return spec["logs"], spec["any"]
    return [], True


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["a"], {0: ([1, 4], False), 1: ([1, 4], False)}),
        (["a,b"], {0: ([1, 4, 2], False), 1: ([2, 1, 4], False), 2: ([1, 4, 2], False)}),
        (["a", "b,c"], {0: ([1, 4, 2, 3], False), 1: ([2, 3, 1, 4], False), 2: ([3, 1, 4, 2], False)}),
        (["b+a"], {0: ([2, 1, 4], False), 1: ([2, 1, 4], False)}),
        (["b+any"], {0: ([2], True), 1: ([2], True)}),
        (["b,any"], {0: ([2], True), 1: ([2], True)}),
        (["b,c+any"], {0: ([2, 3], True), 1: ([3, 2], True)}),
        (["any"], {0: ([], True), 1: ([], True)}),
        ([], {0: ([], True)}),
        (["1=b"], {0: ([], True), 1: ([2], False), 4: ([2], False)}),
        (["1=any,a"], {0: ([1, 4], False), 1: ([], True)}),
        (["c,1=b+a+any,4-5=d"], {0: ([3], False), 1: ([2, 1, 4], True), 4: ([5], False), 5: ([5], False)}),
        (["0-3=a,5-5=b,2=c"], {2: ([1, 4], False), 3: ([1, 4], False), 4: ([], True), 5: ([2], False)}),
    ],
)
def test_a_partition_may_use_what_the_rule_for_it_says(
    texts: list[str], found: dict[int, tuple[list[int], bool]]
) -> None:
    specs = rule_specs(rules(*texts), AREAS, {0, 1, 2})
    shown = {number: areas_of(specs, partitions((0, 1, 2, 0, 1, 2))[number]) for number in found}
    assert shown == found


def test_a_processor_that_comes_with_growth_keeps_to_the_devices_for_the_rest() -> None:
    specs = rule_specs(rules("a,b"), AREAS, {0, 1, 2})
    assert areas_of(specs, Partition(9, 7, ())) == ([1, 4, 2], False)


@given(st.data())
def test_ranges_win_over_processors_and_these_over_the_rest(data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    count = len(owners)
    lists = st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)
    edges = sorted(data.draw(st.lists(st.integers(0, count - 1), max_size=4, unique=True)))
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    by_range = {span: (data.draw(lists), data.draw(st.booleans())) for span in ranges}
    chosen = data.draw(st.sets(st.sampled_from(sorted(set(owners)))))
    by_processor = {owner: (data.draw(lists), data.draw(st.booleans())) for owner in sorted(chosen)}
    rest, rest_any = data.draw(st.one_of(st.just([]), lists)), data.draw(st.booleans())

    def item(devices: list[str], others: bool) -> str:
        return "+".join([*devices, *["any"] * others])

    items = [f"{first}-{last}={item(*by_range[first, last])}" for first, last in ranges]
    items += [f"{owner}={item(*by_processor[owner])}" for owner in by_processor]
    items = data.draw(st.permutations(items))
    items += [item([device], rest_any and device == rest[-1]) for device in rest]
    specs = rule_specs(rules(*items, owners=owners), AREAS, set(owners))

    on = {"a": [1, 4], "b": [2], "c": [3], "d": [5]}
    for partition in partitions(owners):
        spans = [span for span in ranges if span[0] <= partition.number <= span[1]]
        if spans:
            devices, others = by_range[spans[0]]
        elif partition.processor in by_processor:
            devices, others = by_processor[partition.processor]
        elif rest:
            turn = sorted(set(owners)).index(partition.processor) % len(rest)
            devices, others = rest[turn:] + rest[:turn], rest_any
        else:
            devices, others = [], True
        wanted = [number for device in devices for number in on[device]]
        assert areas_of(specs, partition) == (wanted, others)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a,a"], "log device a is named twice"),
        (["a", "a"], "log device a is named twice"),
        (["0=a+a"], "log device a is named twice"),
        (["a+b,b"], "log device b is named twice"),
        (
            ["0=a,0=b"],
            "log rule '0=b': the rule '0=a' is for processor 0 already; give each processor one rule",
        ),
        (["0-3=a", "2-4=b"], "log rule '2-4=b': the rule '0-3=a' is for partitions 2 to 3 already"),
        (["2-2=a", "0-2=b"], "the rule '2-2=a' is for partition 2 already"),
        (["7=a"], "log rule '7=a': processor 7 owns no partition of volume v; name one that does: 0, 1, 2"),
        (["4-6=a"], "log rule '4-6=a': the last partition of volume v is 5; give a range within the volume"),
        (["3-2=a"], "its range ends before it begins"),
        (["a+any+b"], "'any' stands for all other log areas, so that nothing can follow it"),
        (["0=any+b"], "'any' stands for all other log areas"),
        (["a+any,b"], "log rule 'a+any': 'any' stands for all other log areas"),
        (["x"], "there is no device 'x'"),
        (["0=x"], "there is no device 'x'"),
        ([""], "the name of a device is missing"),
        (["a,"], "the name of a device is missing"),
        (["0="], "the name of a device is missing"),
        (["a++b"], "the name of a device is missing"),
        (["x=a"], "'x' is neither a processor nor a range of partitions; write 2= for processor 2"),
        (["0-=a"], "'0-' is neither a processor nor a range of partitions"),
        (["-1=a"], "'-1' is neither"),
        (["=a"], "'' is neither a processor nor a range of partitions"),
        (["\u0663=a"], "is neither a processor nor a range"),
        (["9" * 9999 + "=a"], "is neither a processor nor a range"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(PolyvolError) as refused:
        rules(*texts)
    assert isinstance(refused.value, BadLogRule | RepeatedDevice | UnknownDevice)
    assert words in str(refused.value)


def test_a_device_with_data_of_its_own_is_refused() -> None:
    with pytest.raises(DeviceAdopted):
        bind_rules("v", parse_rules(["0=a,b"]), 1, [0], inventory(adopted="b"))


def test_the_word_for_all_others_is_no_device() -> None:
    there = inventory("any")
    with pytest.raises(BadLogRule, match="a device is named any") as refused:
        bind_rules("v", parse_rules(["a+any"]), 1, [0], there)
    assert "polyvol device rename any NEW" in str(refused.value)
    assert bind_rules("v", parse_rules(["a"]), 1, [0], there) == (LogRule((1,)),)


def test_rules_are_written_as_they_are_read() -> None:
    text = "0-2=a+b,5-5=any,1=c+any,d,a+b"
    assert ",".join(written(rule, NAMES) for rule in rules(text)) == text
    assert named_devices(parse_rules([text])) == ["a", "b", "c", "d"]


def test_an_added_area_is_used_where_devices_are_named_for_the_rest() -> None:
    def added(*texts: str) -> str:
        return ",".join(written(rule, NAMES) for rule in with_device(rules(*texts), 4))

    assert added() == ""
    assert added("0=a") == "0=a"
    assert added("0=a,b") == "0=a,b,d"
    assert added("b,c+any") == "b,c,d+any"
    assert added("b,any") == "b,d,any"
    assert added("b,d") == "b,d"


def test_areas_for_a_snapshot_are_not_for_all() -> None:
    def kept(*texts: str) -> str:
        return ",".join(written(rule, NAMES) for rule in keeping_to(rules(*texts), [1, 2, 1]))

    assert kept() == "a,b+any"
    assert kept("0=c") == "0=c,a,b+any"
    assert kept("c") == "c"


def test_an_area_that_nothing_would_use_is_refused() -> None:
    def refuse(*texts: str, devices: Sequence[int] = (4,), owners: Sequence[int] = (0, 1, 0, 1)) -> None:
        refuse_unused("v", rules(*texts, owners=owners), lambda: partitions(owners), devices)

    with pytest.raises(AreaUnused, match="none would use one more log area") as refused:
        refuse("0=a,1=b")
    assert "polyvol volume set v --log-device" in str(refused.value)
    with pytest.raises(AreaUnused):
        refuse("0-2=a,1=b")
    with pytest.raises(AreaUnused):
        refuse("0=a,1=b", devices=(1, 4))
    refuse()
    refuse("0-2=a")
    refuse("0=a")
    refuse("0=a,1=b+any")
    refuse("0=a,1=b", devices=(2,))
    refuse("0=a,1=b,c")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=8))
def test_rules_that_overlap_are_refused(drawn: list[tuple[int, int]]) -> None:
    ranges = [range(first, first + more + 1) for first, more in drawn]
    named = [number for each in ranges for number in each]
    text = ",".join(f"{each[0]}-{each[-1]}=a" for each in ranges) or "a"
    if len(named) == len(set(named)):
        assert len(parse_rules([text])) == max(1, len(ranges))
        return
    with pytest.raises(BadLogRule, match="already"):
        parse_rules([text])


def test_a_rule_for_each_of_many_partitions_is_compared_with_the_next_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So thousands of rules do not keep the daemon busy for minutes."""
    compared = []

    def noted(one: Range | None, other: Range | None) -> Range | None:
        compared.append(one)
        return common_range(one, other)

    monkeypatch.setattr(log_rules, "common_range", noted)
    assert len(parse_rules([",".join(f"{number}-{number}=a" for number in range(1000))])) == 1000
    assert len(compared) < 1000
