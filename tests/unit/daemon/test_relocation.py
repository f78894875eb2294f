"""Relocation: its setting, what is shown, when it is done, and that it comes before a snapshot is dropped."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from polyvol.daemon.relocation_progress import RelocationProgress
from polyvol.daemon.space.relocation import (
    LOOK_S,
    LOOK_SETTING,
    QUIET_LOOK_S,
    RelocationWorker,
    _pauses,
    _Seen,
    _Watched,
)
from polyvol.mapping.ids import VolumeId
from tests.support.proc import wait_until
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon

MIB = 1 << 20
VOLUME = VolumeId(1)


@pytest.fixture
def volume(daemon: Daemon) -> Daemon:
    daemon.ok("volume", "create", "v", "--size", "64M", "--log-limit", "none")
    return daemon


def shown(daemon: Daemon, name: str = "v") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ok("volume", "show", name, "--json"))["relocation"]
    return found


@pytest.mark.parametrize(
    ("setting", "pauses"),
    [
        ("0.02", (0.02, 0.02)),
        ("1", (LOOK_S, 1.0)),
        ("60", (LOOK_S, QUIET_LOOK_S)),
        ("soon", (LOOK_S, QUIET_LOOK_S)),
        ("-1", (LOOK_S, QUIET_LOOK_S)),
        ("nan", (LOOK_S, QUIET_LOOK_S)),
    ],
)
def test_tests_only_shorten_the_pauses(
    monkeypatch: pytest.MonkeyPatch, setting: str, pauses: tuple[float, float]
) -> None:
    monkeypatch.setenv(LOOK_SETTING, setting)
    assert _pauses() == pauses


@pytest.mark.parametrize(
    ("given", "rate", "text"), [("10M", 10 * MIB, "10 MiB/s"), ("off", 0, "off"), ("auto", None, "auto")]
)
def test_the_setting_is_shown_and_stays(volume: Daemon, given: str, rate: int | None, text: str) -> None:
    volume.ok("volume", "set", "v", "--relocate", "1M")
    assert f"relocation: {text}" in volume.ok("volume", "set", "v", "--relocate", given)
    volume.restart()
    assert shown(volume)["rate"] == rate
    assert text in volume.ok("volume", "show", "v")


@pytest.mark.parametrize("given", ["", "fast", "-1", "1.5", "9999P"])
def test_what_is_no_rate_is_refused(volume: Daemon, given: str) -> None:
    assert volume.run("volume", "set", "v", "--relocate", given).exit_code == 2
    assert shown(volume)["rate"] is None


def test_what_can_be_moved_is_moved_and_shown(volume: Daemon) -> None:
    volume.world.relocatable[VOLUME] = 3 * MIB
    wait_until(lambda: shown(volume)["moved"] == 3 * MIB, "the relocation", 20)
    wait_until(lambda: shown(volume)["state"] == "nothing to move", "its end", 20)
    assert "3 MiB moved" in volume.ok("volume", "show", "v")
    assert "relocation" not in volume.ok("volume", "list")


def test_nothing_is_moved_where_that_is_off_or_cannot_be(volume: Daemon) -> None:
    volume.ok("volume", "set", "v", "--relocate", "off")
    volume.ok("snapshot", "create", "v", "--name", "s")
    volume.ok("volume", "clone", "v@s", "c")
    context = volume.service._context
    worker = RelocationWorker(context)
    worker.look()
    states = [progress.state for progress in context.relocations.values()]
    assert states == ["off", "none: a clone has no base places"]
    assert [worker.relieve(each) for each in context.catalog.volumes.all()] == [0, 0]


def test_a_rate_is_kept_to_and_another_one_applies_at_once(volume: Daemon) -> None:
    volume.ok("volume", "set", "v", "--relocate", "1")
    volume.world.relocatable[VOLUME] = MIB
    wait_until(lambda: shown(volume)["moved"] > 0, "the first block", 20)
    wait_until(lambda: shown(volume)["state"] == "waits, because more would exceed its rate", "a state", 20)
    assert shown(volume)["moved"] < MIB // 2  # a block is more than an hour of this rate
    assert "relocation: auto; " in volume.ok("volume", "set", "v", "--relocate", "auto")
    wait_until(lambda: shown(volume)["moved"] == MIB, "the rest", 20)


def test_late_jobs_make_up_for_what_they_missed_within_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("polyvol.daemon.space.relocation.time", SimpleNamespace(monotonic=lambda: now_s))
    watched = _Watched(_Seen(0, 0, 0, 0, 0))
    moved = 0
    for _ in range(100):
        assert not watched.waits(1000)
        moved += (wanted := watched.due_now(1000))
        watched.note(wanted)
        while watched.waits(1000):
            now_s += 0.4  # a look comes late
    assert 0.99 < moved / (now_s - 100) / 1000 < 1.05
    now_s += 3600
    assert watched.due_now(1000) == 2000  # idle time is not saved up
    assert not watched.waits(2000)


def test_a_setting_is_shown_before_the_next_look() -> None:
    progress = RelocationProgress()
    progress.state = "moving"
    assert progress.view(0).state == "off"
    progress.state = "off"
    assert progress.view(None).state == "has not begun"


def test_active_hosts_have_their_way_until_the_log_is_half_full(volume: Daemon) -> None:
    context = volume.service._context
    worker = RelocationWorker(context)
    found = context.catalog.volumes.get(VOLUME)
    assert found is not None
    size = json.loads(volume.ok("volume", "show", "v", "--json"))["space"]["size"]
    assert worker._is_due(found)
    for used, due in ((size // 2, False), (size * 3 // 5, True)):
        volume.world.used[VOLUME] = used
        live = volume.service.engine.open("v")
        live.pwrite(bytes(4096), 0)
        live.close()
        assert worker._is_due(found) is due
    context.relocations[VOLUME].state = ""
    assert worker._is_due(found)  # they are idle
    assert context.relocations[VOLUME].state == ""


def test_writes_that_wait_get_what_can_be_moved_before_a_snapshot_is_dropped(volume: Daemon) -> None:
    volume.ok("snapshot", "create", "v", "--name", "a", "--scheduled")
    volume.world.starving.add(VOLUME)
    volume.world.relocatable[VOLUME] = MIB
    begin = len(volume.world.calls)
    engine = volume.service.engine
    assert isinstance(engine, SimEngine)
    engine.events.put({"kind": "log-full", "volume": VOLUME})
    wait_until(lambda: "try_again" in volume.world.names()[begin:], "an answer", 10)
    assert [each["name"] for each in json.loads(volume.ok("snapshot", "list", "v", "--json"))] == ["a"]
    engine.events.put({"kind": "log-full", "volume": VOLUME})
    wait_until(lambda: json.loads(volume.ok("snapshot", "list", "v", "--json")) == [], "the drop", 10)


def test_the_speed_is_that_of_the_last_seconds() -> None:
    progress = RelocationProgress()
    begin = progress._at_s
    for second in range(1, 60):
        progress.add(begin + second, 10 * MIB, 0)
    assert abs(progress._speed - 10 * MIB) < MIB
    progress.add(begin + 120, 0, 1)
    assert progress._speed < MIB
    assert (progress.moved, progress.failed) == (590 * MIB, 1)


def written(volume: Daemon, size: int) -> None:
    live = volume.service.engine.open("v")
    for begin in range(0, size, MIB):
        live.pwrite(bytes(MIB), begin)
    live.close()


@pytest.mark.slow
def test_scattered_blocks_go_home_within_what_hosts_have_written(volume: Daemon) -> None:
    volume.world.scattered[VOLUME] = 12 * MIB
    written(volume, 16 * MIB)
    # Each block costs two copies: 8, then what is left is less than a pass is worth.
    wait_until(lambda: volume.world.scattered[VOLUME] == 4 * MIB, "what fits in the credit", 20)
    wait_until(lambda: shown(volume)["state"].startswith("nothing to move"), "its end", 20)
    assert shown(volume)["moved"] == 16 * MIB
    written(volume, 8 * MIB)
    wait_until(lambda: shown(volume)["moved"] == 24 * MIB, "the rest", 20)
    assert volume.world.scattered[VOLUME] == 0


def test_what_was_in_change_logs_at_the_start_may_be_copied_too() -> None:
    progress = RelocationProgress()
    assert progress.credit(MIB) == MIB
    progress.live_before = 10 * MIB
    progress.add(progress._at_s + 1, 4 * MIB, 0)
    assert [progress.credit(written) for written in (0, MIB)] == [6 * MIB, 7 * MIB]
    progress.add(progress._at_s + 1, 8 * MIB, 0)
    assert progress.credit(0) == 0


def test_nothing_moves_away_while_hosts_are_active(volume: Daemon) -> None:
    context = volume.service._context
    worker = RelocationWorker(context)
    found = context.catalog.volumes.get(VOLUME)
    assert found is not None
    assert worker._is_due(found)
    written(volume, 16 * MIB)
    volume.world.scattered[VOLUME] = 12 * MIB
    size = json.loads(volume.ok("volume", "show", "v", "--json"))["space"]["size"]
    volume.world.used[VOLUME] = size * 3 // 5
    assert worker._is_due(found)  # for blocks that can go home
    worker._move(found)
    assert volume.world.scattered[VOLUME] == 12 * MIB
