"""Log rules, processors and places by the command line and the API: what they do, and what is refused."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.commands import cli
from tests.unit.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def devices(daemon: Daemon, tmp_path: Path) -> Daemon:
    """With devices a, b and c of 300 MiB, small of 8 MiB, and image, which is adopted."""
    for name, size in (("a", "300M"), ("b", "300M"), ("c", "300M"), ("small", "8M")):
        daemon.ok("device", "add", str(tmp_path / name), "--size", size)
    (tmp_path / "image").write_bytes(b"x" * MIB)
    daemon.ok("device", "add", str(tmp_path / "image"), "--adopt")
    return daemon


def create(daemon: Daemon, *more: str, name: str = "v", size: str = "4M") -> str:
    return daemon.ok("volume", "create", name, "--size", size, "--partition-size", "1M", *more)


def said(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.ok(*arguments, "--json"))


def rules(daemon: Daemon, name: str = "v") -> list[str]:
    """A volume's log rules, or a snapshot's."""
    noun = "snapshot" if "@" in name else "volume"
    return [rule["rule"] for rule in said(daemon, noun, "show", name)["log_rules"]]


def areas(daemon: Daemon, name: str = "v") -> list[tuple[str, bool]]:
    return [(log["devices"][0], log["default"]) for log in said(daemon, "volume", "show", name)["logs"]]


def specs(daemon: Daemon, name: str = "v") -> list[tuple[object, object, list[int], bool]]:
    """The rules that the engine has for a volume."""
    engine = daemon.service.engine
    spec = next(each.spec for each in engine.volumes.values() if each.spec["name"] == name)  # type: ignore[attr-defined]
    return [(rule["partitions"], rule["processors"], rule["logs"], rule["any"]) for rule in spec["log_rules"]]


def as_it_was(daemon: Daemon) -> tuple[str, str, str]:
    """What a refused verb must not have changed."""
    return (
        daemon.ok("volume", "list", "--json"),
        daemon.ok("device", "list", "--json"),
        daemon.ok("snapshot", "list", "--json"),
    )


def test_a_volume_has_areas_and_rules_on_the_devices_that_are_named(devices: Daemon) -> None:
    create(devices, "--log-device", "0-1=a+b,1=b", "--log-device", "c+any")
    assert rules(devices) == ["0-1=a+b", "1=b", "c+any"]
    assert areas(devices) == [("a", True), ("b", True), ("c", True)]
    wanted = [((0, 1), None, [1, 2], False), (None, [1], [2], False), (None, None, [3], True)]
    assert specs(devices) == wanted
    assert re.search(r"log rules: +0-1=a\+b,1=b,c\+any\n", devices.ok("volume", "show", "v"))
    first = said(devices, "volume", "show", "v")["log_rules"][0]
    assert first == {
        "rule": "0-1=a+b",
        "partitions": [0, 1],
        "processor": None,
        "devices": ["a", "b"],
        "any": False,
    }
    devices.restart()
    assert (rules(devices), specs(devices)) == (["0-1=a+b", "1=b", "c+any"], wanted)


def test_plain_devices_are_used_in_turns(devices: Daemon) -> None:
    create(devices, "--log-device", "a", "--log-device", "b")
    assert rules(devices) == ["a", "b"]
    assert specs(devices) == [(None, [1], [2, 1], False), (None, None, [1, 2], False)]


def test_without_devices_there_are_no_rules(devices: Daemon) -> None:
    create(devices)
    assert (rules(devices), specs(devices)) == ([], [])
    assert re.search("log rules: +any\n", devices.ok("volume", "show", "v"))


def test_a_plan_shows_rules_and_places(devices: Daemon) -> None:
    place = ("--place", "1-2:processor=5,device=c", "--device", "a", "--dry-run")
    text = create(devices, "--log-device", "1=b,a", *place)
    for words in ("log rules: +1=b,a", r"devices: +a \(2 MiB\), c \(2 MiB\)", "processors: +0, 1, 5"):
        assert re.search(f"{words}\n", text)


@pytest.mark.parametrize(
    ("given", "owners"), [("2", [0, 1, 0, 1]), ("3,1", [1, 3, 1, 3]), ("3,", [3, 3, 3, 3])]
)
def test_processors_are_counted_or_named(devices: Daemon, given: str, owners: list[int]) -> None:
    create(devices, "--processors", given)
    shown = said(devices, "volume", "show", "v", "--partitions")
    assert [part["processor"] for part in shown["partitions"]] == owners
    devices.restart()
    assert said(devices, "volume", "show", "v")["processors"] == sorted(set(owners))


def test_the_api_takes_processors_places_and_rules(devices: Daemon) -> None:
    request = {
        "name": "v",
        "size": 4 * MIB,
        "partition_size": MIB,
        "processors": [0, 2],
        "place": ["0-0:device=a:256K+b", {"first": 1, "last": 2, "processor": 1, "devices": ["c"]}],
        "log_devices": ["2=a", "b"],
    }
    Client(devices.state_dir).post("volumes", body=request)
    shown = said(devices, "volume", "show", "v", "--partitions")
    assert [part["processor"] for part in shown["partitions"]] == [0, 1, 1, 2]
    on = [
        [(extent["device"], extent["length"] >> 10) for extent in part["extents"]]
        for part in shown["partitions"]
    ]
    assert on == [[("a", 256), ("b", 768)], [("c", 1024)], [("c", 1024)], [("v.data", 1024)]]
    assert rules(devices) == ["2=a", "b"]
    body = {"volumes": ["v"], "name": "s", "log_device": "c"}
    Client(devices.state_dir).post("snapshots", body=body)
    assert rules(devices, "v@s") == ["c"]


REFUSED = [
    (["nix"], "there is no device 'nix'"),
    (["0=nix"], "there is no device 'nix'"),
    (["a,a"], "log device a is named twice"),
    (["0=a+a"], "log device a is named twice"),
    (["0=a", "0=b"], "log rule '0=b': the rule '0=a' is for processor 0 already"),
    (["0-2=a,2-3=b"], "log rule '2-3=b': the rule '0-2=a' is for partition 2 already"),
    (["7=a"], "log rule '7=a': processor 7 owns no partition of volume v; name one that does: 0, 1"),
    (["0-4=a"], "log rule '0-4=a': the last partition of volume v is 3; give a range within the volume"),
    (["a+any+b"], "'any' stands for all other log areas"),
    (["0=small"], "a log area of volume v needs 64 MiB, and small has 4 MiB free"),
    (["image"], "device image was adopted"),
    (["=a"], "'' is neither a processor nor a range of partitions"),
]


def options(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in ("--log-device", text)]


@pytest.mark.parametrize(("texts", "words"), REFUSED)
def test_rules_that_cannot_be_are_refused_and_nothing_changes(
    devices: Daemon, texts: list[str], words: str
) -> None:
    place = ("--size", "4M", "--partition-size", "1M")
    before = as_it_was(devices)
    assert words in devices.refused("volume", "create", "v", *place, *options(texts))
    assert as_it_was(devices) == before
    create(devices)
    create(devices, name="w", size="2M")
    devices.ok("snapshot", "create", "w", "--name", "s")
    devices.ok("group", "create", "g", "w", "v")
    before = as_it_was(devices)
    devices.world.calls.clear()
    assert words in devices.refused("volume", "set", "v", "--when-full", "keep-snapshots", *options(texts))
    assert words in devices.refused("snapshot", "create", "v", *options(texts))
    assert words.replace("volume v", "volume c") in devices.refused(
        "volume", "clone", "w@s", "c", *options(texts)
    ).replace("volume c is 1", "volume c is 3")
    refused = devices.refused("snapshot", "create", "@g", *options(texts))
    assert words in refused or "of volume w" in refused
    assert as_it_was(devices) == before
    assert not {"add_log", "set_log_rules", "cut", "ask_when_full"} & set(devices.world.names())


@pytest.mark.parametrize("given", ["two", ",", "1,,2", "-1", "\u0663", "9" * 99])
def test_processors_that_are_no_numbers_are_wrong_usage(given: str) -> None:
    result = CliRunner().invoke(cli, ["volume", "create", "v", "--processors", given])
    assert result.exit_code == 2
    assert "is neither a number of processors nor a list of their numbers: 2, or 0,2" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processors", "0,0"], "the processors of a volume: processor 0 is named twice"),
        (["--processors", "0,256"], "256 is not the number of a processor"),
        (["--place", "0-4:processor=1"], "the last partition of volume v would be 3"),
        (["--place", "0-1:processor=1", "--place", "1-2:device=a"], "is for partition 1 already"),
        (["--place", "0-1:device=nix"], "there is no device 'nix'"),
        (["--place", "0-1:device=image"], "device image was adopted"),
        (["--place", "0-3:device=small:3M+small"], "device small is named twice"),
    ],
)
def test_processors_and_places_that_cannot_be_are_refused_and_nothing_changes(
    devices: Daemon, arguments: list[str], words: str
) -> None:
    before = as_it_was(devices)
    place = ("--size", "4M", "--partition-size", "1M")
    assert words in devices.refused("volume", "create", "v", *place, *arguments)
    assert as_it_was(devices) == before


def test_a_volumes_rules_are_changed_while_it_is_in_use(devices: Daemon) -> None:
    create(devices, "--log-device", "a")
    live = devices.service.engine.open("v")
    text = devices.ok("volume", "set", "v", "--log-device", "0=b+a,c+any")
    assert "log rules: 0=b+a,c+any" in text
    assert areas(devices) == [("a", True), ("b", True), ("c", True)]
    wanted = [(None, [0], [2, 1], False), (None, None, [3], True)]
    assert specs(devices) == wanted
    live.close()
    devices.restart()
    assert (rules(devices), specs(devices)) == (["0=b+a", "c+any"], wanted)
    devices.ok("volume", "set", "v", "--log-device", "any")
    assert (rules(devices), specs(devices), len(areas(devices))) == ([], [], 3)
    devices.ok("volume", "set", "v", "--when-full", "keep-snapshots")
    assert rules(devices) == []


def test_rules_of_a_volume_wait_for_a_snapshot_where_the_newest_has_its_own(devices: Daemon) -> None:
    create(devices, "--log-device", "a")
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "b")
    told = devices.run("volume", "set", "v", "--log-device", "c")
    assert told.stderr == (
        "the new rules are in force from the next snapshot on, because v@s has log rules of its own: b\n"
    )
    assert re.search(r"\n1 +a .* snapshots that name it\n", devices.ok("volume", "show", "v"))
    events = [event["text"] for event in said(devices, "status")["events"]]
    assert "volume v has the log rules c from the next snapshot on, because s has its own" in events
    devices.ok("snapshot", "create", "v", "--name", "t")
    assert devices.run("volume", "set", "v", "--log-device", "c+any").stderr == ""
    assert re.search(r"\n1 +a .* the volume, after the others\n", devices.ok("volume", "show", "v"))
    devices.ok("volume", "set", "v", "--log-device", "c,a")
    events = [event["text"] for event in said(devices, "status")["events"]]
    assert "volume v has the log rules c, a from now on" in events


@pytest.mark.parametrize("step", ["add_log", "set_log_rules"])
@pytest.mark.parametrize("successes", [0, 1])
def test_rules_that_the_engine_refuses_are_as_they_were(devices: Daemon, step: str, successes: int) -> None:
    create(devices, "--log-device", "a")
    devices.world.fail[step] = successes
    texts = "b,c" if step == "add_log" else "a+any"
    if step == "set_log_rules" and successes:
        devices.ok("volume", "set", "v", "--log-device", "a+any")
        texts = "a"
    arguments = ("volume", "set", "v", "--when-full", "keep-snapshots", "--no-hooks", "--log-device", texts)
    assert "simulated failure" in devices.refused(*arguments)
    before = ["a+any"] if step == "set_log_rules" and successes else ["a"]
    assert rules(devices) == before
    assert said(devices, "volume", "show", "v")["when_full"] == "keep-writing"
    assert len(areas(devices)) == 1 + (successes if step == "add_log" else 0)
    devices.world.fail.clear()
    devices.restart()
    assert rules(devices) == before
    devices.ok("volume", "set", "v", "--log-device", "b,c")
    assert areas(devices) == [("a", False), ("b", True), ("c", True)]


def test_a_snapshot_has_rules_of_its_own(devices: Daemon) -> None:
    create(devices)
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "0-1=a+any,b")
    assert rules(devices, "v@s") == ["0-1=a+any", "b"]
    assert re.search(r"log rules: +0-1=a\+any,b\n", devices.ok("snapshot", "show", "v@s"))
    (cut,) = [call for call in devices.world.calls if call[0] == "cut"]
    assert [(rule["partitions"], rule["logs"], rule["any"]) for rule in cut[2][0]] == [
        ((0, 1), [3], True),
        (None, [4], False),
    ]
    # What it had before stays what the volume uses first.
    assert rules(devices) == ["v.log-0", "v.log-1+any"]
    assert areas(devices) == [("v.log-0", True), ("v.log-1", True), ("a", False), ("b", False)]
    devices.restart()
    assert rules(devices, "v@s") == ["0-1=a+any", "b"]
    devices.ok("snapshot", "create", "v", "--name", "t")
    assert rules(devices, "v@t") == []
    assert "log rules" not in devices.ok("snapshot", "show", "v@t")
    devices.ok("snapshot", "delete", "v@s")
    assert "used by volume v" in devices.refused("device", "remove", "a")
    devices.ok("volume", "delete", "v", "--yes")
    devices.ok("device", "remove", "a")


def test_a_groups_snapshot_has_areas_in_each_volume(devices: Daemon) -> None:
    create(devices, "--processors", "2")
    create(devices, "--processors", "0,", name="w")
    devices.ok("group", "create", "g", "v", "w")
    before = as_it_was(devices)
    refused = devices.refused("snapshot", "create", "@g", "--name", "s", "--log-device", "1=a")
    assert "processor 1 owns no partition of volume w; name one that does: 0" in refused
    assert as_it_was(devices) == before
    devices.ok("snapshot", "create", "@g", "--name", "s", "--log-device", "0=a,b")
    assert (rules(devices, "v@s"), rules(devices, "w@s")) == (["0=a", "b"], ["0=a", "b"])
    assert [device for device, _ in areas(devices, "w")] == ["w.log", "a", "b"]


def test_areas_of_a_snapshot_of_several_volumes_have_room_for_all_or_are_refused(devices: Daemon) -> None:
    create(devices, size="256M")
    create(devices, size="256M", name="w")
    before = as_it_was(devices)
    refused = devices.refused("snapshot", "create", "v", "w", "--log-device", "a")
    assert "a log area of volume w needs 64 MiB, and a has" in refused
    assert as_it_was(devices) == before


def test_the_engine_refusing_an_area_of_a_snapshot_leaves_none_unused(devices: Daemon) -> None:
    create(devices)
    create(devices, name="w")
    devices.world.fail["add_log"] = 1
    assert "simulated failure" in devices.refused("snapshot", "create", "v", "w", "--log-device", "a")
    assert [device for device, _ in areas(devices)] == ["v.log-0", "v.log-1", "a"], "the next try uses it"
    assert [device for device, _ in areas(devices, "w")] == ["w.log-0", "w.log-1"]
    assert rules(devices, "w") == []
    devices.world.fail.clear()
    devices.ok("snapshot", "create", "v", "w", "--log-device", "a")
    assert [device for device, _ in areas(devices, "w")] == ["w.log-0", "w.log-1", "a"]


def test_an_added_area_is_used_by_the_rest(devices: Daemon) -> None:
    create(devices, "--log-device", "0=a,b")
    devices.ok("volume", "add-log", "v", "--device", "c")
    assert rules(devices) == ["0=a", "b", "c"]
    assert specs(devices) == [
        (None, [0], [1], False),
        (None, [1], [3, 2], False),
        (None, None, [2, 3], False),
    ]
    devices.ok("volume", "add-log", "v", "--size", "8M")
    assert rules(devices) == ["0=a", "b", "c", "v.log"]


def test_a_snapshots_rules_have_an_area_that_is_added_on_their_device(devices: Daemon) -> None:
    create(devices, "--log-device", "a")
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "b,c")
    devices.ok("volume", "add-log", "v", "--device", "b")
    (added,) = [call for call in devices.world.calls if call[0] == "add_log" and call[2] == 4]
    (snapshot,) = added[3]["snapshots"]
    assert [rule["logs"] for rule in snapshot["log_rules"]] == [[3, 2, 4], [2, 4, 3]]
    assert snapshot["epoch"] == 1


def test_an_added_area_that_no_rule_would_use_is_refused(devices: Daemon) -> None:
    create(devices, "--log-device", "0=a,1=b")
    before = as_it_was(devices)
    for more in ([], ["--device", "c"]):
        refused = devices.refused("volume", "add-log", "v", "--size", "8M", *more)
        assert (
            "volume v has log rules for all of its partitions, and none would use one more log area"
            in refused
        )
    assert as_it_was(devices) == before
    devices.ok("volume", "add-log", "v", "--size", "8M", "--device", "a")
    assert specs(devices) == [(None, [0], [1, 3], False), (None, [1], [2], False)]


def test_new_partitions_follow_the_rules(devices: Daemon) -> None:
    devices.ok(
        "volume",
        "create",
        "v",
        "--size",
        "1M",
        "--partition-size",
        "1M",
        "--processors",
        "1,",
        "--log-device",
        "a,b",
    )
    assert specs(devices) == [(None, None, [1, 2], False)]
    devices.ok("volume", "grow", "v", "--size", "3M")
    assert said(devices, "volume", "show", "v")["processors"] == [0, 1]
    assert specs(devices) == [(None, [1], [2, 1], False), (None, None, [1, 2], False)]
    assert rules(devices) == ["a", "b"]


def test_a_clone_has_rules_of_its_own(devices: Daemon) -> None:
    create(devices, "--log-device", "a")
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "b")
    devices.ok("volume", "clone", "v@s", "c", "--processors", "0,1", "--log-device", "1=b+any,a")
    assert rules(devices, "c") == ["1=b+any", "a"]
    devices.ok("volume", "clone", "v@s", "d")
    assert rules(devices, "d") == []
    devices.ok("snapshot", "delete", "v@s")
    devices.restart()
    assert (rules(devices), rules(devices, "c")) == (["a"], ["1=b+any", "a"])


def test_a_rollback_keeps_the_rules(devices: Daemon) -> None:
    create(devices, "--log-device", "0=a,b")
    devices.ok("snapshot", "create", "v", "--name", "s", "--log-device", "c")
    devices.ok("snapshot", "rollback", "v@s", "--safety-name", "t")
    assert (rules(devices), rules(devices, "v@s"), rules(devices, "v@t")) == (["0=a", "b"], ["c"], [])


def test_what_each_processor_held_is_recorded(devices: Daemon) -> None:
    create(devices, "--place", "0-2:processor=3")
    devices.ok("snapshot", "create", "v", "--name", "s")
    devices.ok("volume", "grow", "v", "--size", "6M")
    devices.ok("snapshot", "create", "v", "--name", "t")
    catalog = devices.service._context.catalog
    first, second = (dict(record.shares) for record in catalog.snapshots.all())
    assert first == {0: 1, 3: 3}
    assert sum(second.values()) == 6
