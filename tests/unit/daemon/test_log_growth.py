"""Growth of log areas by the daemon: when, where and up to what; what is said and shown of space."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from polyvol.daemon.client.cli.space_output import lasts_text, limit_text, live_text, to_go
from polyvol.daemon.fill_level import FillLevel
from polyvol.daemon.relocation_progress import RelocationProgress
from polyvol.daemon.space.use_counts import UseCounts
from polyvol.daemon.types.usage import VolumeUseView
from polyvol.daemon.volumes import log_growth
from polyvol.daemon.volumes.advice import Room, advice
from polyvol.daemon.volumes.log_growth import FILES_LEFT, LogGrowth
from polyvol.daemon.volumes.usage import PATIENCE_S
from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.volumes import CloneSource, Volume
from tests.support.proc import wait_until
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon

MIB = 1 << 20
HOUR = 3600
VOLUME = VolumeId(1)


@pytest.fixture
def volume(daemon: Daemon, tmp_path: Path) -> Daemon:
    """A volume of 64 MiB whose log area, of the same size, is on a device with room for much more."""
    for name in ("fast", "slow"):
        daemon.ok("device", "add", str(tmp_path / name), "--size", "1G")
    daemon.ok("volume", "create", "v", "--size", "64M", "--log-device", "fast")
    return daemon


def full(daemon: Daemon) -> str:
    """The engine says that log areas are full, and is answered: how."""
    engine = daemon.service.engine
    assert isinstance(engine, SimEngine)
    daemon.world.starving.add(VOLUME)
    begin = len(daemon.world.calls)
    engine.events.put({"kind": "log-full", "volume": VOLUME})
    answers = [("try_again", VOLUME), ("ask_when_full", VOLUME, False)]
    wait_until(lambda: any(call in answers for call in daemon.world.calls[begin:]), "an answer", 10)
    return next(str(call[0]) for call in daemon.world.calls[begin:] if call in answers)


def shown(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ok("volume", "show", "v", "--json"))
    return found


def sizes(daemon: Daemon) -> list[int]:
    return [log["size"] // MIB for log in shown(daemon)["logs"]]


def events(daemon: Daemon) -> list[str]:
    return [each["text"] for each in json.loads(daemon.ok("status", "--json"))["events"]]


def use(live: int = 0, snapshots_only: int = 0, comes_back: int = 0, clones_keep: int = 0) -> VolumeUseView:
    """What a volume holds, in MiB."""
    return VolumeUseView(
        used=(live + snapshots_only) * MIB,
        live=live * MIB,
        snapshots_only=snapshots_only * MIB,
        comes_back=comes_back * MIB,
        snapshots_keep=(live - comes_back - clones_keep) * MIB,
        clones_keep=clones_keep * MIB,
    )


def made(*, limit: int | None = 0, rate: int | None = None, clone: bool = False) -> Volume:
    source = CloneSource(VolumeId(7), Epoch(1)) if clone else None
    return Volume(
        VOLUME,
        uuid4(),
        "v",
        100 * MIB,
        64 * MIB,
        "ready",
        "keep-writing",
        Epoch(1),
        2,
        0,
        source=source,
        relocation_rate=rate,
        log_limit=limit,
    )


def test_log_areas_grow_for_writes_that_wait_before_a_snapshot_is_dropped(volume: Daemon) -> None:
    volume.ok("snapshot", "create", "v", "--name", "s", "--scheduled")
    assert full(volume) == "try_again"
    assert sizes(volume) == [64, 64]
    assert shown(volume)["snapshots"] == ["s"]
    assert "add_log" in volume.world.names()
    said = "the log areas of volume v grew by 64 MiB on device fast to 128 MiB, of at most 128 MiB"
    assert any(text.startswith(said) for text in events(volume))
    # The limit is reached: now a snapshot gives way.
    assert full(volume) == "try_again"
    assert (sizes(volume), shown(volume)["snapshots"]) == ([64, 64], [])
    assert full(volume) == "ask_when_full"
    assert sizes(volume) == [64, 64]


def test_a_larger_limit_is_used_at_once_by_writes_that_were_refused(volume: Daemon) -> None:
    volume.ok("volume", "set", "v", "--log-limit", "none")
    assert full(volume) == "ask_when_full"
    (said,) = [text for text in events(volume) if "fail with ENOSPC" in text]
    assert "`polyvol volume set v --log-limit SIZE`" in said
    begin = len(volume.world.calls)
    volume.ok("volume", "set", "v", "--log-device", "fast+any")
    assert ("ask_when_full", VOLUME, True) in volume.world.calls[begin:], "other rules may have room"
    assert full(volume) == "ask_when_full"
    begin = len(volume.world.calls)
    volume.ok("volume", "set", "v", "--log-limit", "100M")
    assert ("ask_when_full", VOLUME, True) in volume.world.calls[begin:]
    assert full(volume) == "try_again"
    assert sizes(volume) == [64, 36]


def test_writes_that_were_refused_wait_again_when_something_has_changed(
    volume: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = volume.service._context.catalog.volumes.get(VOLUME)
    assert there is not None
    growth = LogGrowth(volume.service._context, volume.service.volumes.log_areas)
    assert growth.may_grow(there)
    monkeypatch.setattr(log_growth, "AGAIN_S", 0.0)
    volume.world.fail["add_log"] = 0
    assert growth.grow(there, [1]) == 0
    volume.world.fail.clear()
    assert not growth.may_grow(there), "nothing has changed"
    volume.ok("volume", "add-log", "v", "--device", "fast", "--size", "8M")
    assert growth.may_grow(there)
    monkeypatch.setattr(log_growth, "AGAIN_S", 60.0)
    assert not growth.may_grow(there), "it is too soon"


def test_other_devices_are_not_used_unless_the_rules_allow_any(volume: Daemon) -> None:
    volume.ok("volume", "add-log", "v", "--device", "slow", "--size", "8M")
    volume.ok("volume", "set", "v", "--log-device", "slow", "--log-limit", "1G")
    volume.world.starved_areas[VOLUME] = [2]
    before = shown(volume)["log_rules"]
    assert full(volume) == "try_again"
    assert [log["devices"] for log in shown(volume)["logs"]] == [["fast"], ["slow"], ["slow"]]
    assert shown(volume)["log_rules"] == before


def test_a_file_is_made_only_where_files_were_made_and_the_file_system_has_room(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.ok("volume", "create", "v", "--size", "64M")
    context = daemon.service._context
    there = context.catalog.volumes.get(VOLUME)
    assert there is not None
    growth = LogGrowth(context, daemon.service.volumes.log_areas)
    found = os.statvfs(daemon.state_dir)
    room = FILES_LEFT + 63 * MIB

    def little(_: object) -> os.statvfs_result:
        values = list(found)
        values[4] = room // found.f_frsize
        return os.statvfs_result(values)

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", little)
        assert not growth.may_grow(there)
        room += MIB
        assert growth.may_grow(there)
    assert full(daemon) == "try_again"
    assert [log["devices"] for log in shown(daemon)["logs"]] == [["v.log"], ["v.log-2"]]
    assert any("grew by 64 MiB on device v.log-2 to 128 MiB" in text for text in events(daemon))
    daemon.ok("volume", "delete", "v", "--yes")
    assert list((daemon.state_dir / "devices").iterdir()) == []


def test_growth_that_fails_is_told_once_and_the_writes_are_answered(volume: Daemon) -> None:
    volume.ok("snapshot", "create", "v", "--name", "s", "--scheduled")
    volume.world.fail["add_log"] = 0
    assert full(volume) == "try_again"
    assert shown(volume)["snapshots"] == [], "a snapshot was dropped instead"
    assert full(volume) == "ask_when_full"
    assert len([text for text in events(volume) if "could not grow: " in text]) == 1
    assert sizes(volume) == [64]


def test_each_log_rule_has_its_own_growth(volume: Daemon) -> None:
    """What a full device without room has refused does not hold up the writes of another rule."""
    volume.ok(
        "volume", "create", "w", "--size", "2M", "--partition-size", "1M", "--log-device", "0-0=fast,slow"
    )
    context = volume.service._context
    there = context.catalog.volumes.find("w")
    assert there is not None
    context.catalog.volumes.set_policies(replace(there, log_limit=1 << 30))
    there = replace(there, log_limit=1 << 30)
    growth = volume.service.volumes.log_growth
    volume.ok("volume", "add-log", "v", "--device", "fast", "--size", "892M")  # all that is free there
    volume.world.used[there.id] = 128 * MIB
    wait_until(lambda: len(context.catalog.log_areas.of(there.id)) >= 3, "growth on the other device", 20)
    assert growth.almost_full(there) == []
    areas = context.catalog.log_areas.of(there.id)
    assert len({area.device for area in areas[1:]}) == 1


def test_growth_leaves_log_rules_as_they_are(volume: Daemon) -> None:
    volume.ok("volume", "set", "v", "--log-device", "0-0=fast,slow", "--log-limit", "1G")
    before = shown(volume)["log_rules"]
    volume.world.starved_areas[VOLUME] = [1]
    assert full(volume) == "try_again"
    assert [log["devices"] for log in shown(volume)["logs"]] == [["fast"], ["slow"], ["fast"]]
    assert shown(volume)["log_rules"] == before, "fast is for partition 0 alone"


def test_log_areas_that_are_almost_full_grow_ahead_unless_relocation_gives_enough_back(
    volume: Daemon,
) -> None:
    context = volume.service._context
    there = context.catalog.volumes.get(VOLUME)
    assert there is not None
    growth = LogGrowth(context, volume.service.volumes.log_areas)
    volume.ok("volume", "set", "v", "--log-limit", "none")  # the daemon's own must not be first
    for used, back, due in ((57, 0, False), (58, 0, True), (58, 9, True), (58, 20, False)):
        volume.world.used[VOLUME] = used * MIB
        context.uses[VOLUME] = use(live=used, comes_back=back)
        assert bool(growth.almost_full(there)) is due, (used, back)
    context.uses.pop(VOLUME)
    assert growth.almost_full(there) == [], "what comes back is not known"
    volume.ok("volume", "set", "v", "--log-limit", "auto")
    wait_until(lambda: sizes(volume) == [64, 64], "growth without a write that waits", 20)


def test_a_step_that_was_not_possible_is_tried_again_after_a_while(
    volume: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = volume.service._context
    growth = LogGrowth(context, volume.service.volumes.log_areas)
    volume.ok("volume", "set", "v", "--log-limit", "none")  # the daemon's own must not be first
    there = context.catalog.volumes.get(VOLUME)
    assert there is not None
    there = replace(there, log_limit=1 << 30)
    volume.world.used[VOLUME] = 60 * MIB
    context.uses[VOLUME] = use(live=60)
    assert growth.almost_full(there) == [[1]]
    areas = context.catalog.log_areas.of(VOLUME)
    growth._note_vain(there, areas, [1], growth._limits(there, areas))
    assert growth.almost_full(there) == []
    monkeypatch.setattr(log_growth, "VAIN_S", 0.0)
    assert growth.almost_full(there) == [[1]], "it may have been an error that has passed"


def test_the_limit_is_kept_and_shown(volume: Daemon) -> None:
    assert shown(volume)["log_limit"] == {"bytes": 128 * MIB, "auto": True}
    assert "log areas grow up to 128 MiB (auto)" in volume.ok("volume", "show", "v")
    volume.ok("volume", "set", "v", "--log-limit", "1G")
    volume.restart()
    assert shown(volume)["log_limit"] == {"bytes": 1 << 30, "auto": False}
    assert "log limit: none" in volume.ok("volume", "set", "v", "--log-limit", "none")
    assert shown(volume)["log_limit"] == {"bytes": 0, "auto": False}
    volume.ok("volume", "set", "v", "--when-full", "keep-snapshots")
    assert shown(volume)["log_limit"]["bytes"] == 0
    volume.ok("volume", "set", "v", "--log-limit", "auto")
    volume.ok("volume", "grow", "v", "--size", "128M")
    assert shown(volume)["log_limit"] == {"bytes": 256 * MIB, "auto": True}, "it follows the size"
    volume.ok("snapshot", "create", "v", "--name", "s")
    volume.ok("volume", "clone", "v@s", "c")
    clone = json.loads(volume.ok("volume", "show", "c", "--json"))
    assert clone["log_limit"] == {"bytes": 3 * 128 * MIB, "auto": True}, "it has no base places"
    volume.ok("volume", "clone", "v@s", "d", "--log-limit", "none")
    assert json.loads(volume.ok("volume", "show", "d", "--json"))["log_limit"]["bytes"] == 0


@pytest.mark.parametrize("given", ["", "much", "-1", "0", "9999P"])
def test_what_is_no_limit_is_refused(volume: Daemon, given: str) -> None:
    assert volume.run("volume", "set", "v", "--log-limit", given).exit_code != 0
    assert shown(volume)["log_limit"]["auto"]


def test_writes_wait_for_growth_also_where_nothing_else_makes_room(volume: Daemon) -> None:
    volume.ok("volume", "set", "v", "--when-full", "keep-snapshots", "--relocate", "off")
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, True)
    volume.ok("volume", "set", "v", "--log-limit", "none")
    assert volume.world.calls[-1] == ("ask_when_full", VOLUME, False)


@pytest.mark.parametrize(
    ("volume", "held", "room", "said"),
    [
        # What happens by itself comes first, and nothing else is said then.
        (made(limit=None), use(90), Room(100, 50), ["they grow by themselves, up to 200 MiB"]),
        (made(), use(90, comes_back=50), Room(100, 0), ["relocation gives 50 MiB back by itself"]),
        # Relocation is off, or gives nothing back.
        (
            made(rate=0),
            use(90, comes_back=50),
            Room(100, 0),
            ["turn relocation on", "--relocate", "the base places"],
        ),
        (made(rate=0), use(50, 40, 50), Room(100, 0), ["--relocate auto", "alone hold 40 MiB"]),
        # With relocation off, only new writes go to base places that become free.
        (
            made(rate=0),
            use(90),
            Room(100, 0),
            ["the base places of 90 MiB, which writes go back to", "add-log"],
        ),
        (
            made(rate=0, limit=100 * MIB),
            use(90),
            Room(100, 6),
            ["--log-limit SIZE", "the base places of 90 MiB"],
        ),
        (made(), use(90), Room(100, 0), ["need the base places of 90 MiB", "polyvol volume add-log v"]),
        # Snapshots hold something alone, or nothing.
        (made(), use(0, 90), Room(100, 0), ["delete snapshots, which alone hold 90 MiB", "add-log"]),
        # There is room that the limit forbids.
        (made(limit=100 * MIB), use(0, 90), Room(100, 64), ["--log-limit SIZE", "alone hold 90 MiB"]),
        (made(), use(90, clones_keep=90), Room(100, 0), ["delete clones, which pin 90 MiB", "add-log"]),
        # A clone: the same words, and nothing of base places.
        (made(clone=True), use(90), Room(100, 0), ["add a log area"]),
        (made(clone=True, limit=None), use(90), Room(100, 99), ["they grow by themselves, up to 300 MiB"]),
        (made(limit=None), None, Room(100, 9), ["they grow by themselves"]),
        (made(), None, Room(100, 0), ["`polyvol volume show v` says"]),
    ],
)
def test_only_what_helps_is_advised(
    volume: Volume, held: VolumeUseView | None, room: Room, said: list[str]
) -> None:
    text = advice(volume, held, Room(room.size * MIB, room.free * MIB))
    for words in said:
        assert words in text
    for words, others in (
        ("add-log", "add"),
        ("delete snap", "alone hold"),
        ("the base places", "the base places"),
        ("delete clones", "delete clones"),
        ("--relocate", "--relocate"),
        ("--log-limit", "--log-limit"),
    ):
        if not any(others in each or words in each for each in said):
            assert words not in text


def test_how_long_free_space_lasts_is_told_by_the_last_hour() -> None:
    level = FillLevel()
    assert lasts_text(asdict(level.view(0, 1000 * MIB))) == "unknown until some minutes are measured"
    for minute in range(5):
        level.tell(minute * 60.0, minute * MIB, 1000 * MIB, 3 * minute * MIB)
    assert level.view(4 * MIB, 1000 * MIB).redirected_per_hour is None
    level.tell(300.0, 5 * MIB, 1000 * MIB, 15 * MIB)
    view = level.view(5 * MIB, 1000 * MIB)
    assert (view.redirected_per_hour, view.freed_per_hour) == (180 * MIB, 120 * MIB)
    assert (view.measured_s, view.lasts_s) == (300, 995 * HOUR // 60)
    assert lasts_text(asdict(view)) == (
        "for about 16 h at the rate of the last 5 min: 180 MiB an hour redirected, 120 MiB freed"
    )
    # An hour and a half later only the last hour counts, in which nothing stayed.
    for minute in range(6, 100):
        level.tell(minute * 60.0, 5 * MIB, 1000 * MIB, (15 + minute) * MIB)
    view = level.view(5 * MIB, 1000 * MIB)
    assert (view.measured_s, view.redirected_per_hour, view.lasts_s) == (3600, 60 * MIB, None)
    assert lasts_text(asdict(view)) == (
        "as long as it goes on as in the last hour: 60 MiB an hour redirected, 60 MiB freed"
    )
    # The engine counts again from 0.
    level.tell(6000.0, 5 * MIB, 1000 * MIB, 0)
    assert level.view(5 * MIB, 1000 * MIB).redirected_per_hour is None
    assert lasts_text(None) is None


def test_relocation_says_what_is_left_how_long_it_takes_and_why_it_waits() -> None:
    progress = RelocationProgress()
    progress.state = "moving"
    progress.add(progress._at_s + 10, 100 * MIB, 0)
    view = progress.view(None, use(90, comes_back=50), 400 * MIB)
    assert (view.left, view.eta_s, view.written, view.amplification) == (50 * MIB, 5, 400 * MIB, 0.25)
    assert to_go(asdict(view)) == "50 MiB to go, about 5 s"
    progress.state = "nothing to move"
    for held, state in (
        (use(90, comes_back=50), "nothing to move"),
        (use(0, 90), "nothing to move"),
        (use(90), "nothing to move: snapshots need the base places of 90 MiB"),
        (use(90, clones_keep=90), "nothing to move: clones pin 90 MiB"),
        (
            use(9, clones_keep=8),
            "nothing to move: snapshots need the base places of 1 MiB and clones pin 8 MiB",
        ),
    ):
        assert progress.view(None, held, 0).state == state
    assert progress.view(None, None, 0).amplification is None, "hosts wrote nothing"
    assert to_go(asdict(progress.view(None, use(90)))) == ""


def test_what_a_volume_holds_is_told_apart_also_in_the_status(volume: Daemon) -> None:
    volume.world.used[VOLUME] = 60 * MIB
    volume.world.live[VOLUME] = 40 * MIB
    volume.world.pinned[VOLUME] = 4 * MIB
    volume.ok("volume", "set", "v", "--relocate", "off")
    volume.world.relocatable[VOLUME] = 20 * MIB
    view = shown(volume)
    expected = {
        "used": 60 * MIB,
        "live": 40 * MIB,
        "snapshots_only": 20 * MIB,
        "comes_back": 20 * MIB,
        "snapshots_keep": 16 * MIB,
        "clones_keep": 4 * MIB,
    }
    assert view["use"] == expected
    assert view["relocation"]["left"] == 20 * MIB
    text = volume.ok("volume", "show", "v")
    assert "20 MiB can come back to base places, 16 MiB stays: snapshots need its base places" in text
    assert "4 MiB stays: clones pin it" in text
    assert "they grow by themselves, up to 128 MiB, and turn relocation on" in view["advice"]
    (listed,) = json.loads(volume.ok("status", "--json"))["volumes"]
    assert listed["use"] == expected
    assert "SNAPSHOTS ALONE" in volume.ok("status")


@pytest.mark.slow
def test_uses_are_counted_in_the_background_when_something_changed(volume: Daemon) -> None:
    context = volume.service._context
    context.uses.clear()
    wait_until(lambda: VOLUME in context.uses, "a count", 20)
    volume.ok("volume", "delete", "v", "--yes")
    wait_until(lambda: VOLUME not in context.uses, "the volume to be forgotten", 20)


def test_who_asks_does_not_wait_for_a_count_that_takes_long(
    volume: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: VOLUME in volume.service._context.uses, "a count", 20)
    monkeypatch.setattr(UseCounts, "look", lambda *_: None)
    context = volume.service._context
    assert shown(volume)["use"]["live"] == 0
    volume.world.live[VOLUME] = 8 * MIB
    context.use_seconds[VOLUME] = 2 * PATIENCE_S
    context.uses[VOLUME] = use(live=9)
    assert shown(volume)["use"]["live"] == 9 * MIB, "the last one"
    context.use_seconds[VOLUME] = PATIENCE_S / 2
    assert shown(volume)["use"]["live"] == 8 * MIB


def test_a_clone_is_told_in_the_same_words() -> None:
    assert live_text(asdict(use(8)), clone=True) == "8 MiB stays: a clone has no base places"
    assert live_text(asdict(use(0, 8)), clone=False) is None
    assert live_text(None, clone=False) is None
    assert limit_text({"bytes": 0, "auto": False}) == "none: log areas do not grow by themselves"
