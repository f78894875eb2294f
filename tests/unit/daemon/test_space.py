"""Room and space: levels, rates, warnings; what is dropped when the engine asks, and how it is always
answered."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.space_output import room
from polyvol.daemon.fill_level import FillLevel, level_of
from polyvol.daemon.space.change_logs import SpaceMonitor
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.sizes import exact_size
from polyvol.snapshot.retention import droppable
from tests.support.proc import wait_until
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon

MIB = 1 << 20
VOLUME = VolumeId(1)


def engine(daemon: Daemon) -> SimEngine:
    found = daemon.service.engine
    assert isinstance(found, SimEngine)
    return found


def full(daemon: Daemon) -> None:
    """The engine says that the volume is full, and is answered."""
    daemon.world.starving.add(VOLUME)
    begin = len(daemon.world.calls)
    engine(daemon).events.put({"kind": "log-full", "volume": VOLUME})
    answers = ("try_again", "ask_when_full")
    wait_until(lambda: any(name in answers for name in daemon.world.names()[begin:]), "an answer", 10)


def names(daemon: Daemon) -> list[str]:
    return [each["name"] for each in json.loads(daemon.ok("snapshot", "list", "v", "--json"))]


def events(daemon: Daemon) -> list[str]:
    return [each["text"] for each in json.loads(daemon.ok("status", "--json"))["events"]]


@pytest.fixture
def volume(daemon: Daemon) -> Daemon:
    daemon.ok("volume", "create", "v", "--size", "64M", "--log-limit", "none")
    return daemon


@pytest.mark.parametrize(
    ("used", "level"),
    [(0, "ok"), (74, "ok"), (75, "low"), (89, "low"), (90, "critical"), (99, "critical"), (100, "full")],
)
def test_the_level_follows_from_the_use(used: int, level: str) -> None:
    assert level_of(used, 100) == level


def test_each_level_is_warned_of_once_until_it_was_left_by_a_margin() -> None:
    fill_level = FillLevel()
    uses = [10, 76, 74, 76, 92, 88, 91, 100, 100]
    told = [fill_level.tell(float(at), used, 100) for at, used in enumerate(uses)]
    assert told == [None, "low", None, None, "critical", None, None, "full", None]
    assert fill_level.tell(10.0, 80, 100) is None
    assert fill_level.tell(11.0, 90, 100) == "critical"
    assert fill_level.tell(12.0, 69, 100) is None
    assert fill_level.tell(13.0, 95, 100) == "critical"


def test_the_rate_is_that_of_the_last_minutes() -> None:
    fill_level = FillLevel()
    assert fill_level.view(0, 1000).full_after_s is None
    for at in range(11):
        fill_level.tell(float(at), at * 10, 1000)
    assert fill_level.rate == 10
    assert fill_level.view(100, 1000).full_after_s == 90
    areas = [
        {"number": number, "devices": [device], "used": used, "size": 500}
        for number, device, used in ((1, "fast", 500), (2, "slow", 0), (3, "gone", None))
    ]
    shown = {"space": asdict(fill_level.view(100, 1000)), "logs": areas[1:]}
    assert room(shown) == "ok, 900 B free, full in 90 s at 10 B/s"
    assert room({**shown, "logs": areas}) == f"{room(shown)}; area 1 on fast is full"
    assert room({**shown, "space": asdict(fill_level.view(1000, 1000))}) == "full, 0 B free"
    assert room({**shown, "space": None}) == "-"
    # It stands still: the rate falls, and is 0 when all growth is long ago.
    fill_level.tell(100.0, 100, 1000)
    assert fill_level.rate == 1
    fill_level.tell(400.0, 100, 1000)
    assert fill_level.rate == 0
    fill_level.tell(401.0, 110, 1000)
    assert fill_level.view(110, 1000).full_after_s in (None, *range(10_000, 40_000))
    # What is given back is no rate at which it fills.
    fill_level.tell(402.0, 5, 1000)
    assert (fill_level.rate, fill_level.view(5, 1000).full_after_s) == (0, None)


def test_what_may_be_dropped_is_scheduled_and_not_held_oldest_first(volume: Daemon) -> None:
    for name, more in (("a", ["--scheduled"]), ("hand", []), ("b", ["--scheduled"])):
        volume.ok("snapshot", "create", "v", "--name", name, *more)
    catalog = volume.service._context.catalog
    records = catalog.snapshots.of(VOLUME)
    assert [each.name for each in droppable(reversed(records))] == ["a", "b"]
    held = [replace(each, holds=("backup",)) for each in records]
    assert droppable(held) == []


def test_the_oldest_scheduled_snapshot_is_dropped_and_that_is_remembered(volume: Daemon) -> None:
    for name, more in (("hand", []), ("a", ["--scheduled"]), ("b", ["--scheduled"])):
        volume.ok("snapshot", "create", "v", "--name", name, *more)
    full(volume)
    assert names(volume) == ["hand", "b"]
    assert volume.world.names()[-1] == "try_again"
    assert any("snapshot v@a, made by a schedule, was dropped" in text for text in events(volume))
    shown = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert [(each["snapshot"], each["freed"]) for each in shown["dropped"]] == [("a", 0)]
    full(volume)
    assert names(volume) == ["hand"]
    full(volume)
    assert names(volume) == ["hand"]
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, False)
    assert any("no snapshot may be dropped" in text for text in events(volume))
    # A new one of a schedule is something to drop again.
    volume.ok("snapshot", "create", "v", "--name", "c", "--scheduled")
    assert ("ask_when_full", VOLUME, True) in volume.world.calls[-3:]
    volume.restart()
    shown = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert [each["snapshot"] for each in shown["dropped"]] == ["b", "a"]


def test_nothing_is_dropped_for_writes_that_do_not_wait_any_more(volume: Daemon) -> None:
    volume.ok("snapshot", "create", "v", "--name", "a", "--scheduled")
    engine(volume).events.put({"kind": "log-full", "volume": VOLUME})
    wait_until(lambda: "try_again" in volume.world.names(), "an answer", 10)
    assert names(volume) == ["a"]


def test_a_snapshot_that_is_being_read_is_passed_over(volume: Daemon) -> None:
    for name in ("a", "b"):
        volume.ok("snapshot", "create", "v", "--name", name, "--scheduled")
    reader = engine(volume).open("v@a")
    full(volume)
    assert names(volume) == ["a"]
    full(volume)
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, False)
    reader.close()
    wait_until(lambda: ("ask_when_full", VOLUME, True) in volume.world.calls[-2:], "to be asked again", 10)


@pytest.mark.parametrize("step", ["drop_snapshot", "unexport"])
def test_an_event_is_answered_also_when_the_drop_fails(volume: Daemon, step: str) -> None:
    volume.ok("snapshot", "create", "v", "--name", "a", "--scheduled")
    volume.world.fail[step] = 0
    full(volume)
    assert ("ask_when_full", VOLUME, False) in volume.world.calls
    volume.world.fail.clear()


def test_writes_to_a_volume_that_is_gone_are_refused(volume: Daemon) -> None:
    space = SpaceMonitor(volume.service._context, volume.service.snapshots)
    space.make_room(VolumeId(77))
    volume.service._context.volume_trouble[VOLUME] = "for the test"
    space.make_room(VOLUME)
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, False)
    del volume.service._context.volume_trouble[VOLUME]


def test_the_policy_is_kept_and_told_to_the_engine(volume: Daemon) -> None:
    assert ("ask_when_full", VOLUME, True) in volume.world.calls
    volume.ok("volume", "set", "v", "--when-full", "keep-snapshots")
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, True), "blocks can be relocated"
    volume.ok("volume", "set", "v", "--relocate", "off")
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, False)
    volume.ok("snapshot", "create", "v", "--name", "a", "--scheduled")
    full(volume)
    assert names(volume) == ["a"]
    before = len(volume.world.calls)
    volume.restart()
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["when_full"] == "keep-snapshots"
    assert ("ask_when_full", VOLUME, False) in volume.world.calls[before:]


def test_a_drop_that_does_not_help_is_the_last_one(volume: Daemon) -> None:
    """The writes that wait may use one of two areas, and the snapshots' change logs are in the other."""
    for name in "abc":
        volume.ok("snapshot", "create", "v", "--name", name, "--scheduled")
    volume.world.starved_areas[VOLUME] = [2]
    volume.ok("volume", "add-log", "v", "--size", "8M")
    full(volume)
    assert names(volume) == ["b", "c"]
    full(volume)
    assert names(volume) == ["b", "c"]
    assert any("fail with ENOSPC" in event for event in events(volume))
    space = SpaceMonitor(volume.service._context, volume.service.snapshots)
    space._vain[VOLUME] = {2: 1 << 40}
    volume.service._context.refusing.add(VOLUME)
    found = volume.service._context.catalog.volumes.get(VOLUME)
    assert found is not None
    assert space._may_drop(found), "something is free in their areas"


def test_use_is_shown_and_warned_of(volume: Daemon) -> None:
    volume.world.used[VOLUME] = 60 * MIB
    shown = json.loads(volume.ok("volume", "show", "v", "--json"))["space"]
    size = shown["size"]
    assert (shown["used"], shown["free"]) == (60 * MIB, size - 60 * MIB)
    volume.world.used[VOLUME] = size * 4 // 5
    assert "low" in volume.ok("volume", "show", "v")
    assert "low" in volume.ok("status")
    space = SpaceMonitor(volume.service._context, volume.service.snapshots)
    space.sample()
    volume.world.used[VOLUME] = size
    space.sample()
    assert [text for text in events(volume) if "are at 80%" in text]
    assert [text for text in events(volume) if "change logs of volume v are full" in text]
    assert "are full" in volume.ok("status")


def test_a_log_is_added_on_a_device_or_in_a_file(volume: Daemon, tmp_path: Path) -> None:
    volume.ok("device", "add", str(tmp_path / "d"), "--size", "65M")
    volume.ok("volume", "add-log", "v", "--device", "d")
    assert volume.world.calls[-1] == ("add_log", VOLUME, 2, {"log_rules": [], "snapshots": []})
    before = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert [(log["devices"], log["size"]) for log in before["logs"]][-1] == (["d"], 64 * MIB)
    volume.ok("volume", "add-log", "v")
    after = json.loads(volume.ok("volume", "show", "v", "--json"))
    assert after["space"]["size"] == 2 * before["space"]["size"]
    assert after["logs"][-1]["devices"] == ["v.log-2"]
    assert all(log["default"] for log in after["logs"])
    volume.restart()
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["logs"] == after["logs"]
    volume.ok("volume", "add-log", "v", "--size", "5M")
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["logs"][-1]["size"] == 8 * MIB
    assert "volume v has 8 MiB more space for change logs" in events(volume)


def test_a_log_that_cannot_be_added_is_refused_and_leaves_nothing(volume: Daemon, tmp_path: Path) -> None:
    volume.ok("device", "add", str(tmp_path / "d"), "--size", "20M")
    before = volume.ok("volume", "show", "v", "--json")
    devices = volume.ok("device", "list", "--json")
    assert "needs 64 MiB" in volume.refused("volume", "add-log", "v", "--device", "d")
    assert "has a size of 0 B" in volume.refused("volume", "add-log", "v", "--size", "0")
    for size in ((1 << 60) + 1, (1 << 63) - 1):
        said = volume.refused("volume", "add-log", "v", "--size", str(size))
        assert f"has a size of {exact_size(size)}, more than the 1024 PiB that" in said
    assert "named twice" in volume.refused("volume", "add-log", "v", "--device", "d", "--device", "d")
    assert "no device" in volume.refused("volume", "add-log", "v", "--device", "nothing")
    assert "no volume" in volume.refused("volume", "add-log", "w")
    for step in ("add_log", "open_device"):
        volume.world.fail[step] = 0
        assert "simulated failure" in volume.refused("volume", "add-log", "v")
        volume.world.fail.clear()
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["logs"] == json.loads(before)["logs"]
    assert volume.ok("device", "list", "--json") == devices
    assert sorted(path.name for path in (volume.state_dir / "devices").iterdir()) == ["v.data", "v.log"]


def test_a_file_that_was_being_made_for_a_log_is_removed_at_the_next_start(volume: Daemon) -> None:
    volume.ok("volume", "add-log", "v")
    context = volume.service._context
    (made,) = [device for device in context.catalog.devices.all() if device.name == "v.log-2"]
    areas = context.catalog.log_areas.of(VOLUME)
    context.catalog.log_areas.forget(VOLUME, areas[1:], ())
    context.catalog.devices.set_state(made.id, "adding")
    volume.restart()
    assert "v.log-2" not in volume.ok("device", "list")
    assert not (volume.state_dir / "devices" / "v.log-2").exists()
    assert json.loads(volume.ok("volume", "show", "v", "--json"))["state"] == "serving"


def test_devices_that_do_not_answer_and_do_again_are_told(volume: Daemon) -> None:
    volume.world.silent[1] = 5.0
    engine(volume).events.put({"kind": "device-silent", "device": 1})
    wait_until(lambda: any("has not answered for 5 s" in text for text in events(volume)), "an event", 10)
    volume.world.silent.clear()
    engine(volume).events.put({"kind": "device-answers", "device": 1})
    wait_until(lambda: any("answers again" in text for text in events(volume)), "an event", 10)


def test_a_stop_ends_the_watch_at_once(volume: Daemon) -> None:
    volume.service.stop()
    assert volume.world.names()[-1] == "stop"
